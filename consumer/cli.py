"""The command line: `sedflow-consumer run | refit | replay | dlq | topics | top | check-config`."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Event
from typing import Any, Literal

from consumer.errors import SettingsError, exit_code
from consumer.settings import Settings, load_settings
from sedflow_core.argument_types import positive_int
from sedflow_core.errors import SedflowError
from sedflow_core.version import __version__

MAX_ATTEMPTS = 3
"""A dead letter that came back from so many replays is left."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    2 where settings or input cannot be used, 1 where the broker is in the way.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except SedflowError as error:
        print(f"sedflow-consumer: {error}", file=sys.stderr)
        return exit_code(error)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sedflow-consumer", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="alerts from Kafka in, summaries to Kafka out"))
    _add_refit(commands.add_parser("refit", help="flagged summaries in, second opinions out"))
    _add_replay(commands.add_parser("replay", help="archives of alerts in, summaries out"))
    _add_dead_letters(commands.add_parser("dlq", help="dead letters: list, show, replay"))
    _add_topics(commands.add_parser("topics", help="topics and rights: plan, check"))
    top = commands.add_parser("top", help="what a daemon does, in the terminal")
    _add_config(top)
    top.add_argument("--url", help="of the daemon; default: the address of [http]")
    top.set_defaults(command=_top)
    check = commands.add_parser("check-config", help="print the settings, secrets masked")
    _add_config(check)
    check.set_defaults(command=_check_config)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="TOML", help="settings file; the environment wins over it"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="N processes, restarted when they die"
    )
    parser.add_argument(
        "--shadow", metavar="ARTIFACT", help="count what this artifact would answer otherwise"
    )
    _add_accept_gap(parser)
    parser.set_defaults(command=_run)


def _add_refit(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_accept_gap(parser)
    parser.set_defaults(command=_refit)


def _add_accept_gap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-gap", action="store_true", help="go on behind messages deleted before being read"
    )


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("archives", nargs="+", metavar="ARCHIVE", help="file, folder or glob")
    out = parser.add_mutually_exclusive_group()
    out.add_argument("--out", type=Path, metavar="FILE", help="file of summaries")
    out.add_argument(
        "--to-kafka", action="store_true", help="to the topics of [replay] in the settings"
    )
    out.add_argument("--dry-run", action="store_true", help="infer, but write nothing")
    parser.add_argument(
        "--format", choices=("avro", "parquet"), help="default: by the name of FILE"
    )
    parser.add_argument("--artifact", metavar="NAME", help="shipped artifact, or path of one")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="alerts per batch")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="stop after N alerts")
    parser.add_argument(
        "--rate", type=positive_int, metavar="HZ", help="at most so many alerts per second"
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show the galaxies on a live page, at the address of [page], until interrupted",
    )
    parser.set_defaults(command=_replay)


def _add_dead_letters(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    columns = "place, time, stage, class, attempts, message, place in the input"
    listing = commands.add_parser("list", help=f"a line each: {columns}")
    _add_config(listing)
    listing.add_argument("--stage", help="only of this stage, such as decode")
    listing.add_argument("--limit", type=positive_int, metavar="N", help="at most N letters")
    listing.set_defaults(command=_list_letters)
    showing = commands.add_parser("show", help="one letter as JSON, its bytes as base 64")
    _add_config(showing)
    showing.add_argument("place", metavar="TOPIC/PARTITION/OFFSET", help="as listed")
    showing.set_defaults(command=_show_letter)
    again = commands.add_parser("replay", help="try all that arrived since the last replay again")
    _add_config(again)
    again.add_argument(
        "places",
        metavar="TOPIC/PARTITION/OFFSET",
        nargs="*",
        help="these alone, whatever became of them before",
    )
    again.add_argument(
        "--max-attempts",
        type=positive_int,
        metavar="N",
        help=f"leave what N replays sent back; default: {MAX_ATTEMPTS}; without places alone",
    )
    again.set_defaults(command=_replay_letters)


def _add_topics(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    planning = commands.add_parser("plan", help="print Kafka's commands for what is missing")
    _add_config(planning)
    lane = planning.add_mutually_exclusive_group()
    lane.add_argument("--refit", action="store_true", help="for `refit`, not for `run`")
    lane.add_argument(
        "--replay", action="store_true", help="for `replay --to-kafka`, not for `run`"
    )
    planning.set_defaults(command=_plan_topics)
    checking = commands.add_parser("check", help="compare the clusters with what is needed")
    _add_config(checking)
    checking.add_argument("--refit", action="store_true", help="for `refit`, not for `run`")
    checking.set_defaults(command=_check_topics)


def _check_config(options: argparse.Namespace) -> int:
    from consumer.start_checks import check_clients

    settings = load_settings(options.config)
    check_clients(settings)
    print(json.dumps(settings.masked(), indent=2))
    return 0


def _top(options: argparse.Namespace) -> int:
    from consumer.health import url_of
    from consumer.top import watch

    http = load_settings(options.config).http
    try:
        watch((options.url or url_of(http.host, http.port)).rstrip("/"))
    except KeyboardInterrupt:
        return 0
    return 0


def _run(options: argparse.Namespace) -> int:
    settings = _load_stream(options)
    if options.shadow is not None:
        artifact = settings.artifact.model_copy(update={"shadow": options.shadow})
        settings = settings.model_copy(update={"artifact": artifact})
    if options.workers is not None:
        from consumer.supervisor import run_workers

        return run_workers(settings, options.workers)
    from consumer.worker import run_kafka

    return run_kafka(settings)


def _refit(options: argparse.Namespace) -> int:
    from consumer.refit_worker import run_refit

    return run_refit(_load_stream(options))


def _load_stream(options: argparse.Namespace) -> Settings:
    """Return the settings of a lane that runs, with the gap that the command line accepts."""
    settings = load_settings(options.config)
    if not options.accept_gap:
        return settings
    source = settings.input.model_copy(update={"accept_gap": True})
    return settings.model_copy(update={"input": source})


def _plan_topics(options: argparse.Namespace) -> int:
    from consumer.topics import plan, plan_replay

    if options.replay:
        from consumer.replay import derive_replay_settings

        commands = plan_replay(derive_replay_settings(load_settings(options.config)))
    else:
        commands = plan(_load_lane(options), letters=not options.refit)
    print("\n".join(commands))
    return 0


def _check_topics(options: argparse.Namespace) -> int:
    from consumer.topics import report

    return report(_load_lane(options))


def _load_lane(options: argparse.Namespace) -> Settings:
    """Return the settings of the lane that is asked for."""
    from consumer.refit_settings import derive_refit_settings

    settings = load_settings(options.config)
    return derive_refit_settings(settings) if options.refit else settings


def _replay(options: argparse.Namespace) -> int:
    from consumer.replay import replay

    settings = _override(load_settings(options.config), options)
    out: Path | Literal["kafka"] | None = "kafka" if options.to_kafka else options.out
    if out is None and not options.dry_run:
        raise SettingsError("--out: expected a file, or --to-kafka or --dry-run, got none")
    if options.format is not None and options.out is None:
        raise SettingsError(f"--format: expected with --out alone, got {options.format}")
    with ExitStack() as page:
        report = replay(
            settings,
            options.archives,
            out=out,
            file_format=options.format,
            limit=options.limit,
            rate=options.rate,
            **(page.enter_context(_show(settings)) if options.serve else {}),
        )
        print(report, flush=True)
        if options.serve:
            _wait_for_interrupt()
    return 0


def _show(settings: Settings) -> AbstractContextManager[Mapping[str, Any]]:
    from consumer.page import show_replay

    return show_replay(settings)


def _wait_for_interrupt() -> None:
    from consumer.process import stop_on_signals

    interrupted = Event()
    stop_on_signals(interrupted)
    interrupted.wait()


def _list_letters(options: argparse.Namespace) -> int:
    from consumer.dead_letters import list_letters

    settings = load_settings(options.config)
    for line in list_letters(settings, stage=options.stage, limit=options.limit):
        print(line)
    return 0


def _show_letter(options: argparse.Namespace) -> int:
    from consumer.dead_letters import show_letter

    print(json.dumps(show_letter(load_settings(options.config), options.place), indent=2))
    return 0


def _replay_letters(options: argparse.Namespace) -> int:
    from consumer.dead_letters import replay_letters, replay_places

    settings = load_settings(options.config)
    if not options.places:
        attempts = options.max_attempts or MAX_ATTEMPTS
        print(replay_letters(settings, max_attempts=attempts))
    elif options.max_attempts is None:
        print(replay_places(settings, options.places))
    else:
        raise SettingsError(f"--max-attempts: expected no places, got {options.places[0]}")
    return 0


def _override(settings: Settings, options: argparse.Namespace) -> Settings:
    """Return the settings with what the command line says instead; no other artifact is pinned."""
    artifact, batch = settings.artifact, settings.batch
    if options.artifact is not None:
        pinned = artifact.sha256 if options.artifact == artifact.name else None
        artifact = artifact.model_copy(update={"name": options.artifact, "sha256": pinned})
    if options.batch_size is not None:
        batch = batch.model_copy(update={"max_size": options.batch_size})
    return settings.model_copy(update={"artifact": artifact, "batch": batch})


if __name__ == "__main__":
    sys.exit(main())
