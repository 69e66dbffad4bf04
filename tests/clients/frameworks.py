"""Python clients and frameworks, as applications use them, against one node: HOST PORT."""

import asyncio
import sys
import threading
import time

import redis
import redis.asyncio

HOST, PORT = sys.argv[1], int(sys.argv[2])
URL = f"redis://{HOST}:{PORT}"
DONE = []


def check(name):
    """Runs a check and notes that it went well."""

    def run(function):
        function()
        DONE.append(name)
        print(f"  {name}")

    return run


@check("redis-py: strings, counters, hashes, pipelines")
def _():
    for protocol in (2, 3):
        r = redis.Redis(HOST, PORT, protocol=protocol, decode_responses=True)
        r.delete("py:a", "py:n", "py:h")
        assert r.set("py:a", "v", nx=True, ex=100) is True
        assert r.set("py:a", "w", nx=True) is None
        assert r.set("py:a", "w", xx=True, get=True, keepttl=True) == "v"
        assert 90 < r.ttl("py:a") <= 100
        assert [r.incr("py:n"), r.incrby("py:n", 10), r.decr("py:n")] == [1, 11, 10]
        assert r.incrbyfloat("py:n", 0.5) == 10.5
        assert r.getdel("py:a") == "w" and r.get("py:a") is None
        assert r.setnx("py:a", "1") and r.getex("py:a", px=100_000) == "1"
        assert r.append("py:a", "23") == 3 and r.getrange("py:a", 1, 2) == "23"
        assert r.hset("py:h", mapping={"f": "1", "g": "2"}) == 2
        assert r.hgetall("py:h") == {"f": "1", "g": "2"}
        assert r.hincrby("py:h", "f", 4) == 5 and r.hmget("py:h", "f", "x") == ["5", None]
        assert r.expire("py:h", 100, nx=True) and not r.expire("py:h", 100, nx=True)
        r.delete("py:n")
        with r.pipeline(transaction=True) as p:
            assert p.incr("py:n").incr("py:n").execute() == [1, 2]
        assert set(r.scan_iter("py:*")) >= {"py:a", "py:h", "py:n"}
        r.close()


@check("redis-py: WATCH of one key, optimistic")
def _():
    r = redis.Redis(HOST, PORT, decode_responses=True)
    r.set("py:w", 0)

    def add():
        own = redis.Redis(HOST, PORT, decode_responses=True)
        for _ in range(25):
            while True:
                with own.pipeline() as p:
                    try:
                        p.watch("py:w")
                        value = int(p.get("py:w"))
                        p.multi()
                        p.set("py:w", value + 1)
                        p.execute()
                        break
                    except redis.WatchError:
                        pass

    threads = [threading.Thread(target=add) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert r.get("py:w") == "100", r.get("py:w")


@check("redis-py: Lock, one holder at a time")
def _():
    r = redis.Redis(HOST, PORT)
    r.delete("py:lock")
    inside, most, count = [0], [0], [0]

    def work():
        own = redis.Redis(HOST, PORT)
        for _ in range(10):
            with own.lock("py:lock", timeout=30, sleep=0.005):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                count[0] += 1
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (most[0], count[0]) == (1, 40), (most, count)
    lock = r.lock("py:lock", timeout=10)
    assert lock.acquire(blocking=False) and not r.lock("py:lock").acquire(blocking=False)
    assert lock.extend(10) and lock.reacquire() and lock.owned()
    lock.release()
    try:
        lock.release()
        raise AssertionError("released twice")
    except redis.exceptions.LockError:
        pass


@check("redis-py: publish and subscribe")
def _():
    r = redis.Redis(HOST, PORT, decode_responses=True)
    p = r.pubsub()
    p.subscribe("py:news")
    p.psubscribe("py:n*")
    got = [p.get_message(timeout=5) for _ in range(2)]
    assert [m["type"] for m in got] == ["subscribe", "psubscribe"], got
    assert r.publish("py:news", "hello") >= 1
    got = [p.get_message(timeout=5) for _ in range(2)]
    assert {m["type"] for m in got} == {"message", "pmessage"}, got
    p.unsubscribe()
    p.close()


@check("redis-py: asyncio")
def _():
    async def main():
        r = redis.asyncio.Redis(host=HOST, port=PORT, decode_responses=True)
        await r.delete("py:async")
        values = await asyncio.gather(*(r.incr("py:async") for _ in range(50)))
        assert sorted(values) == list(range(1, 51))
        async with r.lock("py:alock", timeout=10):
            assert await r.exists("py:alock")
        await r.aclose()

    asyncio.run(main())


def django():
    import django
    from django.conf import settings

    if settings.configured:
        return
    settings.configure(
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": f"{URL}/0"},
            "django-redis": {
                "BACKEND": "django_redis.cache.RedisCache",
                "LOCATION": f"{URL}/1",
                "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
            },
        },
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        SECRET_KEY="only for this test",
    )
    django.setup()


def use_cache(cache):
    cache.clear()
    assert cache.add("a", 1, 100) and not cache.add("a", 2)
    assert cache.incr("a", 5) == 6 and cache.decr("a") == 5 and cache.get("a") == 5
    cache.set_many({"b": [1, 2], "c": "text"}, timeout=100)
    assert cache.get_many(["b", "c", "none"]) == {"b": [1, 2], "c": "text"}
    assert cache.touch("b", 200) and cache.has_key("b")
    assert cache.get_or_set("d", lambda: "made") == "made"
    cache.delete_many(["b", "c"])
    assert cache.get("b") is None
    try:
        cache.incr("none")
        raise AssertionError("counted what is not there")
    except ValueError:
        pass
    cache.clear()
    assert cache.get("a") is None


@check("Django: cache")
def _():
    django()
    from django.core.cache import cache

    use_cache(cache)


@check("Django: sessions")
def _():
    django()
    from django.contrib.sessions.backends.cache import SessionStore

    session = SessionStore()
    session["user"] = 7
    session.save()
    again = SessionStore(session.session_key)
    assert again["user"] == 7
    again.cycle_key()
    assert SessionStore(again.session_key)["user"] == 7
    again.flush()
    assert SessionStore(session.session_key).get("user") is None


@check("django-redis: cache, ttl, keys, lock, delete_pattern")
def _():
    django()
    from django.core.cache import caches

    cache = caches["django-redis"]
    use_cache(cache)
    cache.set("t:1", 1, timeout=100)
    cache.set("t:2", 2, timeout=None)
    assert 90 < cache.ttl("t:1") <= 100 and cache.ttl("t:2") is None
    assert sorted(cache.keys("t:*")) == ["t:1", "t:2"]
    assert sorted(cache.iter_keys("t:*")) == ["t:1", "t:2"]
    assert cache.persist("t:1") and cache.ttl("t:1") is None
    assert cache.expire("t:1", timeout=50)
    with cache.lock("t:lock", timeout=10):
        pass
    assert cache.delete_pattern("t:*") == 2
    # Another database than that of Django's own cache.
    caches["default"].set("only here", 1)
    assert cache.get("only here") is None


@check("Flask-Caching")
def _():
    from flask import Flask
    from flask_caching import Cache

    app = Flask("test")
    cache = Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_HOST": HOST, "CACHE_REDIS_PORT": PORT})
    calls = []

    @cache.memoize(100)
    def slow(n):
        calls.append(n)
        return n * 2

    with app.app_context():
        cache.clear()
        assert [slow(2), slow(2), slow(3)] == [4, 4, 6] and calls == [2, 3]
        cache.delete_memoized(slow, 2)
        assert slow(2) == 4 and calls == [2, 3, 2]
        assert cache.add("x", 1) and not cache.add("x", 2)
        cache.set_many({"y": 1, "z": 2})
        assert cache.get_many("y", "z") == [1, 2]
        cache.delete_many("y", "z")
        cache.clear()


@check("limits: fixed window, moving counter")
def _():
    from limits import parse, storage, strategies

    store = storage.storage_from_string(URL)
    assert store.check()
    limit = parse("5/minute")
    window = strategies.FixedWindowRateLimiter(store)
    window.clear(limit, "py", "user")
    hits = [window.hit(limit, "py", "user") for _ in range(7)]
    assert hits == [True] * 5 + [False] * 2, hits
    assert window.get_window_stats(limit, "py", "user").remaining == 0
    window.clear(limit, "py", "user")
    assert window.hit(limit, "py", "user")


@check("celery: results")
def _():
    from celery import Celery

    app = Celery("test", backend=f"{URL}/2", broker="memory://")
    backend = app.backend
    backend.store_result("py:task", {"answer": 42}, "SUCCESS")
    assert app.AsyncResult("py:task").get(timeout=10) == {"answer": 42}
    assert app.AsyncResult("py:task").state == "SUCCESS"
    # A result that comes while somebody waits for it arrives by publish.
    waiting = app.AsyncResult("py:later")
    later = threading.Timer(0.5, lambda: Celery("other", backend=f"{URL}/2").backend.store_result("py:later", 7, "SUCCESS"))
    later.start()
    assert waiting.get(timeout=20) == 7
    app.AsyncResult("py:task").forget()
    assert app.AsyncResult("py:task").state == "PENDING"


print(f"{len(DONE)} of Python")
