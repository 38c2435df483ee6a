# The Ruby client: Socket's own resolver and threads. It has no non-blocking connects of its own.
require "json"
require "net/http"
require "resolv"
require "socket"

def look_up(name)
  return [Resolv.getname(name[4..])] if name.start_with?("ptr:")
  return ["!not asked"] if name.start_with?("srv:")
  Addrinfo.getaddrinfo(name, nil, nil, :STREAM).map(&:ip_address)
rescue SocketError, Resolv::ResolvError
  ["!NXDOMAIN"]
end

def errno_of(address)
  host, _, port = address.rpartition(":")
  TCPSocket.new(host, port.to_i).close
  "connected"
rescue Errno::ECONNREFUSED
  "ECONNREFUSED"
rescue SystemCallError => error
  error.class.name
end

names, url, refused, = ARGV
out = { client: "ruby" }
out[:names] = names.split(",").to_h { |name| [name, look_up(name)] } unless names == "-"
out[:http] = Net::HTTP.get(URI(url)).lines.first.chomp unless url == "-"
out[:refused] = errno_of(refused) unless refused == "-"
puts JSON.generate(out)
