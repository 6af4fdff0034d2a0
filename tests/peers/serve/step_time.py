#!/usr/bin/env python3
"""What a step of many sequences costs the engine, and what it costs the thread between two steps.

    step_time.py SMQ_RUN MODEL [--device cuda] [--clients 1,8,64]
                 [--prompt-len 64] [--output-len 256]

Starts a server, puts load on it by `smq-run load` with each number of clients, and reads from
/metrics how many steps that took, how long the engine computed them, and how long it waited for its
thread between them. The first level is run once before and not shown: kernels are compiled and
recorded there.

Needs nothing but Python.
"""

import argparse
import json
import subprocess
import tempfile
import urllib.request


def figures(url):
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ["smq:steps_total", "smq:engine_seconds_total", "smq:host_seconds_total"]
    found = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if "{" in line}
    return [found[name] for name in names]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("smq_run")
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=1000)
    args = parser.parse_args()
    command = [args.smq_run, "--device", args.device, "serve", args.model, "--port", "0"]
    tokens = 64 * (args.prompt_len + args.output_len + 64)
    command += ["--until-stdin-ends", "--kv-tokens", str(tokens)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().strip().rsplit(" ", 1)[1]
    with urllib.request.urlopen(f"{url}/version") as answer:
        print(json.load(answer))
    levels = [int(clients) for clients in args.clients.split(",")]
    for index, clients in enumerate([max(levels), *levels]):
        before = figures(url)
        with tempfile.NamedTemporaryFile() as report:
            load = [args.smq_run, "load", "--url", url, "--concurrency", str(clients)]
            load += ["--num-prompts", str(4 * clients), "--seed", str(100 + index)]
            load += ["--prompt-len", str(args.prompt_len), "--output-len", str(args.output_len)]
            load += ["--vocab", str(args.vocab), f"--json={report.name}"]
            subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
            level = json.load(open(report.name))["levels"][0]
        steps, engine, host = (after - b for after, b in zip(figures(url), before))
        if index > 0:
            print(
                f"{clients} clients: {steps:.0f} steps,"
                f" {1e6 * engine / steps:.1f} us each in the engine,"
                f" {1e6 * host / steps:.1f} us between two;"
                f" {level['output_throughput']:.0f} tokens/s,"
                f" TPOT {level['median_tpot_ms']:.3f} ms"
            )
    server.stdin.close()
    assert server.wait() == 0


if __name__ == "__main__":
    main()
