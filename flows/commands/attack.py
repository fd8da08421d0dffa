"""`scapre attack`: how often somebody with the weights brings a concept back."""

from pathlib import Path
from typing import Annotated

import typer

from flows.exit_codes import ExitCode
from flows.progress import console, progress_bar
from flows.services import open_services

ATTACKS_HELP = "Attacks to run, separated by commas: `search`, `matching`, `inversion`. Takes minutes per concept."


def attack(
    checkpoint: Annotated[Path, typer.Argument(help="The model after: a folder, a single file, a LoRA or an edit.")],
    base: Annotated[Path, typer.Option(help="The model before, a folder in the diffusers layout.")],
    target: Annotated[list[str], typer.Option(help="Concept to bring back; repeat for several.")],
    attacks: Annotated[str, typer.Option("--attack", "--attacks", help=ATTACKS_HELP)] = "search,matching,inversion",
    steps: Annotated[int | None, typer.Option(help="Steps of each start, instead of each attack's default.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Starts; the best by the attack's own aim is drawn.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures of each model and of the random control.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Words searched or vectors learned.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="As for `scapre judge`.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the figures as JSON here.")] = None,
) -> int:
    """Attack a checkpoint that was made to forget, and say how often the concept comes back. Judges nothing.

    **search** looks for other words; **matching** learns a word's vector that the candidate reads as the base reads the
    name; **inversion** learns one from pictures. Each is run on the base too, to see that it works (`before`), and
    drawn again with nothing learned (`random`). The weights are not changed.

    Example: `scapre attack edit.safetensors --base infra/reference/model --target tiger --attack inversion --steps 300`
    """
    services = open_services()
    from flows.attacking import attack_checkpoint, describe_results, table_lines, with_attacks, write_results
    from flows.checkpoints import open_checkpoint
    from flows.questions import ask, choose_detectors
    from flows.takedown import DEFAULT_POLICY
    from validation import load_policy

    policy = with_attacks(
        load_policy(DEFAULT_POLICY).model_copy(update={"robustness_limit": None}),
        attacks,
        steps=steps,
        restarts=restarts,
        pictures=pictures,
        tokens=tokens,
    )
    before = open_checkpoint(base)
    after = open_checkpoint(checkpoint, base=before)
    question = ask(target, retain=[], pack=None)
    detectors = choose_detectors(detector or [], question, services.settings)
    with progress_bar("attacking", console()) as on_progress:
        results = attack_checkpoint(
            services,
            base=before,
            candidate=after,
            question=question,
            detectors=detectors,
            policy=policy,
            on_progress=on_progress,
        )
    for line in table_lines(results):
        typer.echo(line)
    if json_path is not None:
        document = describe_results(results, base=before, candidate=after, detectors=detectors, policy=policy)
        write_results(json_path, document)
    return ExitCode.OK
