// Node clients and frameworks, as applications use them, against one node: HOST PORT.

import assert from "node:assert";
import Redis from "ioredis";
import { createClient } from "redis";
import { createKeyv } from "@keyv/redis";
import express from "express";
import session from "express-session";
import { RedisStore } from "connect-redis";
import { RateLimiterRedis } from "rate-limiter-flexible";
import { RedisStore as LimitStore } from "rate-limit-redis";
import { rateLimit } from "express-rate-limit";

const [host, port] = [process.argv[2], Number(process.argv[3])];
const url = `redis://${host}:${port}`;
let done = 0;

async function check(name, run) {
  await run();
  done += 1;
  console.log(`  ${name}`);
}

await check("ioredis: strings, hashes, pipelines, scripts, scan", async () => {
  const redis = new Redis({ host, port });
  await redis.del("js:a", "js:n", "js:h");
  assert.equal(await redis.set("js:a", "v", "EX", 100, "NX"), "OK");
  assert.equal(await redis.set("js:a", "w", "EX", 100, "NX"), null);
  assert.equal(await redis.incrby("js:n", 5), 5);
  await redis.hset("js:h", { f: 1, g: "x" });
  assert.deepEqual(await redis.hgetall("js:h"), { f: "1", g: "x" });
  const piped = await redis.pipeline().incr("js:n").get("js:a").exec();
  assert.deepEqual(piped, [[null, 6], [null, "v"]]);
  const multi = await redis.multi().incr("js:n").incr("js:n").exec();
  assert.deepEqual(multi, [[null, 7], [null, 8]]);
  redis.defineCommand("addTo", { numberOfKeys: 1, lua: "return redis.call('incrby', KEYS[1], ARGV[1])" });
  assert.equal(await redis.addTo("js:n", 2), 10);
  assert.equal(await redis.addTo("js:n", 2), 12);
  const found = [];
  for await (const keys of redis.scanStream({ match: "js:*" })) found.push(...keys);
  assert.deepEqual([...new Set(found)].sort(), ["js:a", "js:h", "js:n"]);
  const other = new Redis({ host, port, db: 5 });
  assert.equal(await other.get("js:a"), null);
  await other.quit();
  await redis.quit();
});

await check("ioredis: publish and subscribe", async () => {
  const [listener, sender] = [new Redis({ host, port }), new Redis({ host, port })];
  const heard = new Promise((resolve) => listener.on("message", (...message) => resolve(message)));
  await listener.subscribe("js:news");
  assert.ok((await sender.publish("js:news", "hello")) >= 1);
  assert.deepEqual(await heard, ["js:news", "hello"]);
  await Promise.all([listener.quit(), sender.quit()]);
});

for (const RESP of [2, 3]) {
  await check(`node-redis: RESP${RESP}`, async () => {
    const redis = createClient({ url, RESP });
    redis.on("error", (error) => console.error(error));
    await redis.connect();
    await redis.del(["js:a", "js:n", "js:h"]);
    assert.equal(await redis.set("js:a", "v", { NX: true, PX: 100_000 }), "OK");
    assert.equal(await redis.set("js:a", "w", { NX: true }), null);
    assert.equal(await redis.getDel("js:a"), "v");
    assert.equal(await redis.incr("js:n"), 1);
    await redis.hSet("js:h", { f: "1", g: "2" });
    assert.deepEqual({ ...(await redis.hGetAll("js:h")) }, { f: "1", g: "2" });
    assert.deepEqual(await redis.multi().incr("js:n").incr("js:n").exec(), [2, 3]);
    const value = await redis.eval("return redis.call('get', KEYS[1])", { keys: ["js:n"], arguments: [] });
    assert.equal(value, "3");
    const listener = redis.duplicate();
    await listener.connect();
    const heard = new Promise((resolve) => listener.subscribe("js:more", resolve));
    await new Promise((resolve) => setTimeout(resolve, 200));
    await redis.publish("js:more", "hi");
    assert.equal(await heard, "hi");
    await listener.close();
    await redis.close();
  });
}

await check("keyv", async () => {
  const keyv = createKeyv(url, { namespace: "js:keyv" });
  await keyv.set("a", { b: [1] }, 100_000);
  assert.deepEqual(await keyv.get("a"), { b: [1] });
  assert.equal(await keyv.has("a"), true);
  assert.equal(await keyv.delete("a"), true);
  assert.equal(await keyv.get("a"), undefined);
  await keyv.set("b", 1);
  await keyv.clear();
  assert.equal(await keyv.get("b"), undefined);
  await keyv.disconnect();
});

async function served(app, run) {
  const server = app.listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  try {
    return await run(`http://127.0.0.1:${server.address().port}/`);
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

await check("connect-redis: sessions of express", async () => {
  const client = createClient({ url });
  await client.connect();
  const app = express();
  const store = new RedisStore({ client, prefix: "js:sess:" });
  app.use(session({ store, secret: "only for this test", resave: false, saveUninitialized: false }));
  app.get("/", (request, response) => {
    request.session.views = (request.session.views ?? 0) + 1;
    response.send(String(request.session.views));
  });
  await served(app, async (address) => {
    const first = await fetch(address);
    assert.equal(await first.text(), "1");
    const cookie = first.headers.get("set-cookie").split(";")[0];
    const second = await fetch(address, { headers: { cookie } });
    assert.equal(await second.text(), "2");
  });
  assert.equal((await new Promise((resolve, reject) => store.length((e, n) => (e ? reject(e) : resolve(n))))), 1);
  await new Promise((resolve, reject) => store.clear((e) => (e ? reject(e) : resolve())));
  await client.close();
});

await check("rate-limiter-flexible", async () => {
  const storeClient = new Redis({ host, port, enableOfflineQueue: true });
  const limiter = new RateLimiterRedis({ storeClient, points: 5, duration: 60, keyPrefix: "js:rl", blockDuration: 60 });
  await limiter.delete("user");
  const results = await Promise.allSettled(Array.from({ length: 8 }, () => limiter.consume("user")));
  assert.equal(results.filter((r) => r.status === "fulfilled").length, 5);
  assert.equal((await limiter.get("user")).remainingPoints, 0);
  await limiter.delete("user");
  assert.equal((await limiter.consume("user", 2)).remainingPoints, 3);
  await limiter.reward("user", 1);
  await storeClient.quit();
});

await check("rate-limit-redis: express-rate-limit", async () => {
  const client = createClient({ url });
  await client.connect();
  const app = express();
  const store = new LimitStore({ sendCommand: (...words) => client.sendCommand(words), prefix: `js:erl:${Date.now()}:` });
  app.use(rateLimit({ windowMs: 60_000, limit: 3, store }));
  app.get("/", (_, response) => response.send("ok"));
  await served(app, async (address) => {
    const codes = [];
    for (let i = 0; i < 5; i++) codes.push((await fetch(address)).status);
    assert.deepEqual(codes, [200, 200, 200, 429, 429]);
  });
  await client.close();
});

console.log(`${done} of Node`);
process.exit(0);
