# The bash client: /dev/tcp for connections, `getent` for names. It has no non-blocking connects.
names=$1 url=$2 refused=$3
out='{"client":"bash"'
if [ "$names" != - ]; then
  out+=',"names":{' separator=
  IFS=, read -ra all <<<"$names"
  for name in "${all[@]}"; do
    found=$(getent ahosts "$name" | awk '{print $1}' | sort -u | sed 's/.*/"&"/' | paste -sd,)
    out+="$separator\"$name\":[${found:-\"!NXDOMAIN\"}]" separator=,
  done
  out+='}'
fi
if [ "$url" != - ]; then
  target=${url#http://} host=${target%%/*} path=/${target#*/}
  port=80; [[ $host == *:* ]] && port=${host##*:} host=${host%:*}
  if exec 3<>"/dev/tcp/$host/$port"; then
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$path" "$host" >&3
    while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
    IFS= read -r body <&3
    exec 3>&-
    out+=",\"http\":\"$body\""
  fi
fi
if [ "$refused" != - ]; then
  said=$({ exec 3<>"/dev/tcp/${refused%:*}/${refused##*:}" && echo connected; } 2>&1)
  case $said in *"Connection refused"*) said=ECONNREFUSED ;; esac
  out+=",\"refused\":\"${said//[$'\n'\"]/ }\""
fi
echo "$out}"
