"""The Python client: libc's resolver (getaddrinfo), asyncio for the connects."""
import asyncio
import errno
import json
import socket
import sys
import time
import urllib.request


def look_up(name):
    try:
        if name.startswith("ptr:"):
            return [socket.gethostbyaddr(name[4:])[0]]
        if name.startswith("srv:"):
            return ["!no SRV in the standard library"]
        return sorted({info[4][0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return ["!NXDOMAIN" if error.errno == socket.EAI_NONAME else "!" + str(error)]
    except socket.herror as error:
        return ["!" + str(error)]


def split(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def errno_of(address):
    try:
        socket.create_connection(split(address), timeout=20).close()
        return "connected"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))


async def connect_many(address):
    host, port = split(address)
    started = time.monotonic()
    pairs = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in range(20)))
    took = (time.monotonic() - started) * 1000
    for _, writer in pairs:
        writer.close()
    return took


def main():
    names, url, refused, many = sys.argv[1:5]
    out = {"client": "python"}
    if names != "-":
        out["names"] = {name: look_up(name) for name in names.split(",")}
    if url != "-":
        with urllib.request.urlopen(url, timeout=20) as response:
            out["http"] = response.read().decode().split("\n")[0]
    if refused != "-":
        out["refused"] = errno_of(refused)
    if many != "-":
        out["connects_ms"] = asyncio.run(connect_many(many))
    print(json.dumps(out))


main()
