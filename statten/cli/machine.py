"""The commands about this machine: doctor, bench, demo."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from statten.cli.options import Json, Storage, app, begin, print_json
from statten.errors import UserError, nearest, user_path


@app.command()
def doctor(
    storage: Storage = None,
    address: Annotated[
        str | None, typer.Option(help="Also check a Ray cluster: http://HEAD:8265, or HOST:PORT from one of its machines.")
    ] = None,
    make_token: Annotated[bool, typer.Option("--make-token", help="Make the clusters' token file, if there is none.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, and say what is missing and what to do."""
    if make_token:
        from statten.cluster.token import make_token as make

        return print(f"the token of your clusters is in {make()}, which only you can read")
    begin(as_json, storage)
    from statten.display import console
    from statten.doctor.diagnose import diagnose, healthy, render, to_json

    checks = diagnose(storage, address)
    if as_json:
        print_json(to_json(checks))
    else:
        console.print(render(checks))
    raise typer.Exit(0 if healthy(checks) else 1)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(metavar="lif|step|memory|attention|data", help="What to measure.")],
    model: Annotated[str, typer.Option(help="cifar10_2_512, cifar10dvs_2_256_t16 or imagenet_8_768.")] = "cifar10_2_512",
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per step; default: 8, on a GPU the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Measured turns; their median is reported.")] = 10,
    output: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="FILE", help="Write the results there too, with the hardware named."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory against SpikingJelly and against what the machine can do."""
    begin(as_json, None)
    if find_spec("spikingjelly") is None:
        raise UserError("bench: needs spikingjelly, the peer that it measures; install with: pip install 'statten[bench]'")
    from statten.bench import BENCHMARKS, documents, pick, run_benchmark

    if what not in BENCHMARKS:
        raise UserError(f"{what!r} is no benchmark; {nearest(what, list(BENCHMARKS))}")
    rows = run_benchmark(what, pick(device), repeats, model, batch, output)
    if as_json:
        print_json(documents(rows))


@app.command()
def demo(storage: Storage = None, as_json: Json = False) -> None:
    """The main job on bundled data: sweep, promote the best trial, evaluate it."""
    folder = begin(as_json, storage)
    from statten.cli.demo import run_demo

    report = run_demo(folder)
    if as_json:
        print_json(report)
