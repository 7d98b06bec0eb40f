"""Runs in an environment of its own with the package ``rocketmq`` (Apache's C++ client). Talks JSON lines.

produce NAMESRV GROUP TOPIC            reads {"body", "tags", "keys", "delay", "key", "oneway"} or {"batch": [bodies]} lines,
                                       answers one line for each
flood NAMESRV GROUP TOPIC PREFIX       sends numbered bodies until standard input ends, orderly by queue 0
consume NAMESRV GROUP TOPIC EXPRESSION [orderly] [failfirst|failalways]
pull NAMESRV GROUP TOPIC COUNT
"""

import json
import sys
import threading
import time

from rocketmq.client import Message, Producer, PullConsumer, PushConsumer

LOCK = threading.Lock()


def say(**fields):
    with LOCK:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def message_of(topic, wish):
    message = Message(topic)
    message.set_body(wish["body"])
    if wish.get("tags"):
        message.set_tags(wish["tags"])
    if wish.get("keys"):
        message.set_keys(wish["keys"])
    if wish.get("delay"):
        message.set_delay_time_level(wish["delay"])
    return message


def produce(namesrv, group, topic):
    producer = Producer(group)
    producer.set_namesrv_addr(namesrv)
    producer.start()
    say(ready=True)
    for line in sys.stdin:
        wish = json.loads(line)
        try:
            if "batch" in wish:
                result = producer.send_batch([message_of(topic, {"body": body}) for body in wish["batch"]])
            elif wish.get("oneway"):
                producer.send_oneway(message_of(topic, wish))
                say(ok=True)
                continue
            elif "key" in wish:
                result = producer.send_orderly(message_of(topic, wish), wish["key"])
            else:
                result = producer.send_sync(message_of(topic, wish))
            say(ok=True, status=int(result.status), id=result.msg_id, offset=result.offset)
        except Exception as error:
            say(ok=False, error=repr(error))
    producer.shutdown()


def flood(namesrv, group, topic, prefix):
    producer = Producer(group, timeout=3000)
    producer.set_namesrv_addr(namesrv)
    producer.start()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    number = 0
    while not ended.is_set():
        body = f"{prefix}-{number}"
        began = time.time()
        try:
            result = producer.send_orderly(message_of(topic, {"body": body}), 0)
            say(ok=True, body=body, status=int(result.status), offset=result.offset, at=time.time())
        except Exception as error:
            say(ok=False, body=body, error=repr(error)[:200], at=time.time(), took=time.time() - began)
        number += 1
        time.sleep(0.01)
    producer.shutdown()


def consume(namesrv, group, topic, expression, *options):
    consumer = PushConsumer(group, orderly="orderly" in options)
    consumer.set_namesrv_addr(namesrv)
    consumer.set_thread_count(1)

    def took(message):
        failing = "failalways" in options or ("failfirst" in options and message.reconsume_times == 0)
        say(
            body=message.body.decode(),
            tags=(message.tags or b"").decode(),
            keys=(message.keys or b"").decode(),
            queue=message.queue_id,
            offset=message.queue_offset,
            again=message.reconsume_times,
            failed=failing,
            at=time.time(),
        )
        if failing:
            raise ValueError("again, please")

    consumer.subscribe(topic, took, expression)
    consumer.start()
    say(ready=True)
    sys.stdin.read()
    consumer.shutdown()


def pull(namesrv, group, topic, count):
    consumer = PullConsumer(group)
    consumer.set_namesrv_addr(namesrv)
    consumer.start()
    got = 0
    deadline = time.time() + 60
    while got < int(count) and time.time() < deadline:
        for message in consumer.pull(topic):
            got += 1
            say(body=message.body.decode(), queue=message.queue_id, offset=message.queue_offset)
    consumer.shutdown()


if __name__ == "__main__":
    {"produce": produce, "flood": flood, "consume": consume, "pull": pull}[sys.argv[1]](*sys.argv[2:])
