"""`align-gen recipe`: a recipe to start from."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, writing_to
from ..files import remove, whole_file
from .arguments import epilog

EXAMPLE = "align-gen recipe new mine --model emoji-sd --method prdp"

app = typer.Typer(help="Write a recipe to start from.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Write a recipe to start from."""


@app.command(epilog=epilog(EXAMPLE))
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name: NAME.yaml is written.")],
    model: Annotated[
        str, typer.Option(help="A bundled model, a pipeline folder or a hub name.")
    ] = "emoji-sd",
    reward: Annotated[
        str, typer.Option(help="The reward to optimise: [LABEL=]NAME[:key=value,…].")
    ] = "clip:path=emoji-clip,goal=a glossy 3d emoji,baseline=a flat icon",
    method: Annotated[str, typer.Option(help="The method; align-gen list methods has them.")] = (
        "prdp"
    ),
) -> None:
    """Write NAME.yaml: the usual keys set, every other one in a comment with its default."""
    file = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if file.exists():
        raise UserError(f"{file}: is there already; want another name")

    from ..reward_heads.code import code_in
    from ..training.recipe import Recipe
    from .arguments import parse_reward
    from .starter import starter

    label, options = parse_reward(reward)
    text = starter(model, method, {label: options}, out=f"runs/{file.stem}")
    with writing_to(file), whole_file(file) as stream:
        stream.write(text.encode())
    try:
        # What it names came from this command line; nothing of it is run here.
        Recipe.load(file, allow_code=True)
    except UserError:
        # A recipe that does not load helps nobody.
        remove(file)
        raise
    # The recipe's own code is asked for like anybody's.
    allowed = " --allow-code" if list(code_in({label: options})) else ""
    print(f"{file}: edit it, then align-gen finetune {file} --dry-run{allowed}")
