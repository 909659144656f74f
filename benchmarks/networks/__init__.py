"""Whole networks against the engines that a PyTorch user could pick today: ``python -m benchmarks.networks --help``.

networks.py   the models: torchvision's architectures with seeded weights, pruned, and their float64 outputs
engines.py    who takes part: names, what each is given, its settings, its Python
adapters.py   one class an engine: load, call, output
worker.py     a process that holds one engine and obeys lines on its standard input
contest.py    a case: every worker loads, is validated, then all are timed in turn
plans.py      which cases: the table, the sweeps; the goals
store.py      the JSON file
render.py     Markdown from the JSON; charts.py: pictures from it
peers         a script that makes the environments of the peers

Nothing is imported here: the workers run in environments that have no torch.
"""
