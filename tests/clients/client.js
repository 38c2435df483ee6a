// The Node client: getaddrinfo in a thread for names, c-ares for SRV and PTR, libuv for the connects.
const dns = require("node:dns").promises;
const http = require("node:http");
const net = require("node:net");

async function lookUp(name) {
  try {
    if (name.startsWith("srv:")) return (await dns.resolveSrv(name.slice(4))).map((r) => `${r.name}:${r.port}`);
    if (name.startsWith("ptr:")) return await dns.reverse(name.slice(4));
    return (await dns.lookup(name, { all: true })).map((found) => found.address);
  } catch (error) {
    return [error.code === "ENOTFOUND" ? "!NXDOMAIN" : "!" + error.code];
  }
}

function fetchLine(url) {
  return new Promise((resolve) => {
    const request = http.get(url, { agent: false }, (response) => {
      let body = "";
      response.on("data", (piece) => (body += piece));
      response.on("end", () => resolve(body.split("\n")[0]));
    });
    request.on("error", (error) => resolve("!" + error.code));
  });
}

function connect(address) {
  const at = address.lastIndexOf(":");
  const host = address.slice(0, at).replace(/[[\]]/g, "");
  return new Promise((resolve, reject) => {
    const socket = net.connect(Number(address.slice(at + 1)), host);
    socket.on("connect", () => resolve(socket));
    socket.on("error", reject);
  });
}

async function main() {
  const [names, url, refused, many] = process.argv.slice(2);
  const out = { client: "node" };
  if (names !== "-") {
    out.names = {};
    for (const name of names.split(",")) out.names[name] = await lookUp(name);
  }
  if (url !== "-") out.http = await fetchLine(url);
  if (refused !== "-") {
    out.refused = await connect(refused).then(
      (socket) => (socket.destroy(), "connected"),
      (error) => error.code,
    );
  }
  if (many !== "-") {
    const started = process.hrtime.bigint();
    const sockets = await Promise.all(Array.from({ length: 20 }, () => connect(many)));
    out.connects_ms = Number(process.hrtime.bigint() - started) / 1e6;
    sockets.forEach((socket) => socket.destroy());
  }
  console.log(JSON.stringify(out));
}

main();
