"""redis-py's Lock through several nodes that die: SECONDS HOST:PORT... Never two holders at a time."""

import sys
import threading
import time

import redis
from redis.exceptions import LockError, RedisError

SECONDS, NODES = float(sys.argv[1]), sys.argv[2:]
UNTIL = time.monotonic() + SECONDS
HOLDERS = 0
COUNT = [0, 0]
GUARD = threading.Lock()
BAD = []


def client(number):
    host, port = NODES[number % len(NODES)].split(":")
    return redis.Redis(host, int(port), socket_timeout=5, socket_connect_timeout=5, retry=None)


def work(number):
    global HOLDERS
    node = number
    r = client(node)
    while time.monotonic() < UNTIL:
        lock = r.lock("the lock", timeout=4, sleep=0.01)
        try:
            asked = time.monotonic()
            if not lock.acquire(blocking_timeout=1):
                continue
            with GUARD:
                HOLDERS += 1
                if HOLDERS > 1:
                    BAD.append(f"{HOLDERS} hold it")
            time.sleep(0.002)
            with GUARD:
                HOLDERS -= 1
                COUNT[0] += 1
            if time.monotonic() - asked > 3:
                # Too near to its end to tell anything.
                BAD.append("held for longer than it may be")
            lock.release()
        except LockError:
            with GUARD:
                BAD.append("lost before its time")
        except (RedisError, OSError):
            # Its node is gone, or does not know: through another one. The lock ends by itself.
            with GUARD:
                COUNT[1] += 1
            node += 1
            r = client(node)
            time.sleep(0.05)


threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(f"held {COUNT[0]} times, {COUNT[1]} errors, {len(BAD)} wrong: {BAD[:3]}")
sys.exit(1 if BAD or COUNT[0] == 0 else 0)
