"""Everything that wants a GPU, in one command with one result: ``benchmarks/gpu/run``. See README.md beside this.

__main__.py   the command line
runner.py     parts one after another, each with its share of the time; the JSON after each
record.py     what a part has found, on disk after every entry; scrub.py takes names of folders out
parts.py      which parts there are: order, shares, where their code is
build.py      1: build the package with what is there, or take a build that is there
tests.py      2: tests/cuda, each test's outcome as it comes (outcomes.py is the pytest plugin)
sanitize.py   3: compute-sanitizer over operated.py
bits.py       4: the same bits as the CPU, or a stated bound
timings.py    5: operators (operators.py), a ResNet-50 in training and in pruning (networks.py), what zeros save there
              (zeros.py), on clock.py
cpu.py        6: the CPU of that machine, by the engines of benchmarks/networks
machine.py    what the machine is, without names of hosts or paths

The runner imports no torch: whatever breaks in a part, the JSON is written.
"""
