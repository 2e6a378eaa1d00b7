"""`glimprouter`: the commands. Imports are late, so that `--help` and `ask` don't wait for Ray or vLLM."""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer

from deployments import tenants
from deployments.proxies import spare_this_machine

PROFILES = Path(__file__).parent / "profiles"

app = typer.Typer(
    name="glimprouter",
    help="Step-routed reasoning: a small model writes the easy steps, a large model the hard ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"glimprouter: {error}", err=True)
    return typer.Exit(1)


def _named(profile: Path) -> Path:
    """A file, or a profile that comes along by its name."""
    named = PROFILES / f"{profile}.yaml"
    return named if named.exists() and not profile.exists() else profile


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glimprouter {installed('glimprouter')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    spare_this_machine()


@app.command()
def run(
    profile: Annotated[
        Path | None,
        typer.Argument(
            help="A Serve config file, or the name of a profile that comes along.", show_default="the embedded pair"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the profile's http_options, else 8000.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: the profile's http_options, else 127.0.0.1.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of Ray, Serve and vLLM.")] = False,
    with_parent: Annotated[
        bool, typer.Option("--with-parent", help="Stop when the process that started this one ends.")
    ] = False,
) -> None:
    """Start the system on this machine and stay in the foreground; Ctrl-C stops everything it started."""
    parent = os.getppid()
    from deployments import launcher
    from deployments.config import embedded_pair
    from deployments.plan import check_port, read_plan
    from deployments.progress import StartError

    try:
        plan = read_plan(_named(profile or embedded_pair()), host=host, port=port, verbose=verbose)
        check_port(plan.host, plan.port)
    except StartError as error:
        raise _fail(error) from None
    raise typer.Exit(launcher.supervise(plan, parent if with_parent else None))


@app.command()
def rollout(
    profile: Annotated[Path, typer.Argument(help="The profile that the running system shall become.")],
) -> None:
    """Change the system that runs on this machine to another profile; no request fails.

    A new threshold (in `deployments`, as the router's `user_config`) is taken up at once. A new pair starts beside the
    old one, so there must be room for both, and requests end on the pair they began with.
    """
    from deployments.plan import read_plan
    from deployments.progress import Console, StartError
    from deployments.rollout import roll_out

    try:
        plan = read_plan(_named(profile))
        roll_out(plan, Console(plan.started).say)
    except StartError as error:
        raise _fail(error) from None


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask; `-` reads it from standard input.")],
    url: Annotated[str, typer.Option(help="The server.", envvar="GLIMPROUTER_URL")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="glimpse (routed), glimpse-<threshold>, small or large.")] = "glimpse",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, help="Entropy in nats above which a step is the large model's (0 to 3). Default: the server's."
        ),
    ] = None,
    token_threshold: Annotated[
        float | None,
        typer.Option(min=0, help="The same for every token, which is then the large model's by itself."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Limit on reasoning and answer together.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy. Default: the model's own.")] = None,
    key: Annotated[str | None, typer.Option(help="API key.", envvar="GLIMPROUTER_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the server's whole JSON reply instead.")] = False,
) -> None:
    """Ask a running server one question and watch the two models share the work, step by step."""
    from deployments import asking

    if question == "-":
        question = typer.get_text_stream("stdin", errors="replace").read()
    if not (question := question.strip()):
        raise _fail(ValueError("there is no question"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what this terminal has no character for
    body = asking.body(
        question,
        model=model,
        threshold=threshold,
        token_threshold=token_threshold,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    try:
        if as_json:
            typer.echo(asking.whole(url, body, key))
        else:
            asking.Transcript().show(asking.stream(url, body, key))
    except asking.AskError as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def calibrate(
    profile: Annotated[Path, typer.Argument(help="The profile whose threshold is to be found.", exists=True)],
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Wanted share of tokens by the large model, 0 to 1.")
    ] = None,
    accuracy: Annotated[float | None, typer.Option(min=0, max=1, help="Wanted share of right answers, 0 to 1.")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Find the token threshold; that of steps stays what it is.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="JSONL with `question` and `answer`. Default: the embedded generator.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="How many of them.")] = 100,
    url: Annotated[str | None, typer.Option(help="A server that runs the profile. Default: start one.")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where to start it. Default: any free one.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the problems and of all chance.")] = 7,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Limit on reasoning and answer together.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find it, but leave the profile as it is.")] = False,
) -> None:
    """Find the threshold for a wanted share of tokens by the large model, or for a wanted accuracy, on a sample of
    prompts, and write it into the profile. A running server takes it up when it is started again."""
    import asyncio

    from loadtest import calibrate as calibration
    from loadtest.client import Client
    from loadtest.command import MeasuringError, serving
    from loadtest.quality import Bench
    from loadtest.questions import BOXED, from_file, generated

    if (share is None) == (accuracy is None):
        raise _fail(ValueError("give either --share or --accuracy"))

    async def find(url: str) -> calibration.Calibrated:
        async with Client(url) as client:
            bench = Bench(client, questions, seed, concurrency, max_tokens)
            start = (await client.served()).threshold
            if share is not None:
                by_share = calibration.tokens_by_share if tokens else calibration.by_share
                return await by_share(bench, share, start)
            assert accuracy is not None
            by_accuracy = calibration.tokens_by_accuracy if tokens else calibration.by_accuracy
            return await by_accuracy(bench, accuracy, start)

    try:
        calibration.read(profile)  # rather than to find out that it is none when all is measured
        questions = generated(seed, problems, "tune") if data is None else from_file(data, problems, BOXED)
        with serving(url, profile, port) as at:
            found = asyncio.run(find(at))
        typer.echo(found.note)
        if not dry_run:
            calibration.write(profile, found)
            typer.echo(f"Written into {profile}")
    except MeasuringError as error:
        raise _fail(error) from None


@app.command()
def profiles() -> None:
    """List the profiles that come along."""
    for profile in sorted(PROFILES.glob("*.yaml")):
        first = profile.read_text().splitlines()[0] if profile.stat().st_size else ""
        typer.echo(f"{profile.stem:20} {first.removeprefix('#').strip() if first.startswith('#') else ''}".rstrip())


app.add_typer(tenants.keys, name="keys")
app.add_typer(tenants.tenants, name="tenants")
app.command()(tenants.usage)
app.add_typer(tenants.shadow, name="shadow")


if __name__ == "__main__":
    app()
