#!/usr/bin/env python3
"""Faults that take longer than the tests of smq-run: many requests, random departures, and a server
that is killed.

    faults.py SMQ_RUN MODEL [--requests 10000] [--concurrency 64] [--seconds 120] [--only random]

Starts servers of its own on the CPU and ends with an error if something does not hold:

1. REQUESTS requests at CONCURRENCY, each with a prompt of its own: each is answered once, a sample
   of them with the tokens that the same prompt has alone, and the server's memory does not grow
   over the second half.
2. SECONDS of random traffic: whole answers, streams, several samples, refusals, and clients that
   leave at every stage. Whoever stays gets the answer that the request has alone; after every
   step the server checks that no page is lost or in two sequences (--check-pages), and in the end
   nothing runs, waits or holds a page.
3. The server is killed under load and started again on its port: every client sees an error or a
   whole answer, and the next one is served.

Needs nothing but Python.
"""

import argparse
import atexit
import collections
import http.client
import json
import random
import signal
import socket
import subprocess
import threading
import time


class Server:
    def __init__(self, binary, model, port=0, options=()):
        command = [binary, "--device", "cpu", "serve", model, "--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        self.host, port = self.process.stdout.readline().strip().rsplit("//", 1)[1].split(":")
        self.port = int(port)

    def connect(self, timeout=300):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def post(self, connection, body, path="/v1/completions"):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def metric(self, name, label=""):
        connection = self.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        lines = [
            line for line in text.splitlines() if line.startswith(name + "{") and label in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return (
                next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
            )

    def wait_until_idle(self):
        start = time.monotonic()
        names = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "smq:http_requests_in_flight",
        ]
        while any(self.metric(name) for name in names):
            assert time.monotonic() - start < 60, {name: self.metric(name) for name in names}
            time.sleep(0.02)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0


def threads(count, work):
    errors = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)
            raise

    running = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not errors, errors[0]


def ask(number):
    """A request that is like no other."""
    digits = [20 + int(d) for d in f"{number:06d}"]
    body = {
        "prompt": digits + [300 + number % 700] * (1 + number % 9),
        "max_tokens": 1 + number % 6,
        "ignore_eos": True,
    }
    if number % 3 == 0:
        body |= {"temperature": 0.8, "seed": number}
    return body


def text(answer):
    return [choice["text"] for choice in json.loads(answer)["choices"]]


def many(args):
    server = Server(args.smq_run, args.model)
    alone = server.connect()
    sample = range(0, args.requests, max(1, args.requests // 200))
    expected = {number: text(server.post(alone, ask(number))[1]) for number in sample}
    ids, lock, numbers = collections.Counter(), threading.Lock(), iter(range(args.requests))
    wrong, memory = [], []

    def client(_):
        connection = server.connect()
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    return
                if number % max(1, args.requests // 20) == 0:
                    memory.append(server.memory())
            status, answer = server.post(connection, ask(number))
            assert status == 200, (number, status, answer)
            with lock:
                ids[json.loads(answer)["id"]] += 1
                if number in expected and text(answer) != expected[number]:
                    wrong.append(number)

    start = time.monotonic()
    threads(args.concurrency, client)
    took = time.monotonic() - start
    server.wait_until_idle()
    memory.append(server.memory())
    half = memory[len(memory) // 2 :]
    print(
        f"{args.requests} requests at concurrency {args.concurrency}: "
        f"{took:.1f} s, {args.requests / took:.0f} a second"
    )
    print(
        f"  answered {sum(ids.values())}, with as many ids ({len(ids)});"
        f" {len(expected)} compared with the same request alone, {len(wrong)} differ"
    )
    print(f"  RssAnon in MiB, every twentieth: {', '.join(f'{m:.0f}' for m in memory)}")
    finished = server.metric("vllm:request_success_total")
    print(
        f"  the server counts {finished:.0f} sequences that ended,"
        f" {server.metric('vllm:request_success_total', 'abort'):.0f} aborted,"
        f" {server.metric('vllm:num_preemptions_total'):.0f} preemptions"
    )
    assert len(ids) == sum(ids.values()) == args.requests and not wrong
    assert finished == args.requests + len(expected)
    assert max(half) - min(half) < 16, "memory grows"
    server.end()


def random_traffic(args):
    # Few pages, so that sequences are preempted, and few places, so that some are refused.
    options = [
        "--kv-tokens",
        "768",
        "--max-sequences",
        "16",
        "--max-requests",
        "40",
        "--max-queue",
        "32",
        "--check-pages",
    ]
    server = Server(args.smq_run, args.model, options=options)
    alone = server.connect()
    expected = [text(server.post(alone, long(number))[1]) for number in range(24)]
    counts, lock = collections.Counter(), threading.Lock()
    end = time.monotonic() + args.seconds

    def count(what):
        with lock:
            counts[what] += 1

    def client(index):
        chance = random.Random(index)
        while time.monotonic() < end:
            number = chance.randrange(24)
            kind = chance.choice(["whole", "whole", "stream", "leave", "leave", "half", "bad"])
            connection = server.connect()
            body = long(number)
            if kind == "bad":
                status, _ = server.post(connection, body | {"temperature": 9})
                assert status in (400, 429), status
                count(f"refused with {status}")
            elif kind == "whole":
                status, answer = server.post(connection, body)
                count(f"whole answers: {status}")
                assert status in (200, 429, 503), (status, answer)
                assert status != 200 or text(answer) == expected[number], number
            else:
                body |= {"stream": True}
                if kind != "stream":
                    body |= {"max_tokens": 500}
                connection.request("POST", "/v1/completions", json.dumps(body))
                if kind == "half":
                    connection.sock.shutdown(socket.SHUT_WR)
                    count("half-closed")
                elif kind == "leave":
                    # Queued, in its prompt, in its tokens, or never having been read at all.
                    time.sleep(chance.choice([0, 0.001, 0.01, 0.1]))
                    count("left")
                else:
                    response = connection.getresponse()
                    count(f"streams: {response.status}")
                    assert response.status in (200, 429, 503)
                    if response.status == 200:
                        events = response.read().decode().split("\n\n")
                        assert events[-2] == "data: [DONE]", events[-3:]
                        pieces = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
                        texts = [""] * body.get("n", 1)
                        for piece in pieces:
                            texts[piece["index"]] += piece["text"]
                        assert texts == expected[number], number
            connection.close()
            # Clients that come back at once would be all that the server hears.
            time.sleep(chance.uniform(0, 0.2))

    threads(24, client)
    server.wait_until_idle()
    # The server has closed the one that was idle.
    alone = server.connect()
    again = [text(server.post(alone, long(number))[1]) for number in range(24)]
    print(f"{args.seconds} s of random traffic by 24 clients: {sum(counts.values())} requests")
    for what in sorted(counts):
        print(f"  {what}: {counts[what]}")
    print(
        f"  aborted {server.metric('vllm:request_success_total', 'abort'):.0f},"
        f" failed {server.metric('vllm:request_success_total', 'error'):.0f},"
        f" preemptions {server.metric('vllm:num_preemptions_total'):.0f};"
        f" pages held in the end: {server.metric('vllm:kv_cache_usage_perc'):.0f}"
    )
    steps, checks = server.metric("smq:steps_total"), server.metric("smq:page_checks_total")
    print(f"  steps {steps:.0f}; all pages checked {checks:.0f} times")
    assert again == expected
    assert server.metric("vllm:request_success_total", "error") == 0
    # The server stops at a page that is lost or in two sequences.
    assert checks >= steps > 0
    server.end()


def long(number):
    body = {
        "prompt": [20 + number] * (1 + 11 * number),
        "max_tokens": 4 + 3 * number,
        "ignore_eos": True,
        "temperature": 0.9,
        "seed": number,
    }
    return body | ({"n": 3} if number % 5 == 0 else {})


def killed(args):
    server = Server(args.smq_run, args.model)
    outcomes, stop = collections.Counter(), threading.Event()

    def client(index):
        while not stop.is_set():
            try:
                connection = server.connect()
                status, answer = server.post(connection, ask(index))
                outcomes[
                    "whole answers" if status == 200 and text(answer) else f"status {status}"
                ] += 1
            except (OSError, http.client.HTTPException) as error:
                outcomes[type(error).__name__] += 1
                time.sleep(0.02)

    clients = [threading.Thread(target=client, args=(index,)) for index in range(16)]
    for thread in clients:
        thread.start()
    time.sleep(2)
    server.process.kill()
    server.process.wait()
    before = outcomes["whole answers"]
    time.sleep(0.5)
    start = time.monotonic()
    server = Server(args.smq_run, args.model, port=server.port)
    took = time.monotonic() - start
    time.sleep(2)
    stop.set()
    for thread in clients:
        thread.join()
    print(
        f"killed under load and started again on its port in {took:.2f} s:"
        f" {before} whole answers before, {outcomes['whole answers'] - before} after;"
        f" otherwise { ({k: v for k, v in outcomes.items() if k != 'whole answers'}) }"
    )
    assert before > 0 and outcomes["whole answers"] > before
    assert not any(key.startswith("status") for key in outcomes)
    server.wait_until_idle()
    server.end()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("smq_run")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", choices=["many", "random", "killed"])
    args = parser.parse_args()
    for name, part in [("many", many), ("random", random_traffic), ("killed", killed)]:
        if args.only in (None, name):
            part(args)
    print("all of it holds")


if __name__ == "__main__":
    main()
