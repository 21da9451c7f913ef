"""`gbnn-compress recipe`: the shipped recipes."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from gbnn_compress_cli import console

from gbnn_compress.errors import OutputError, RecipeError
from gbnn_compress.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

app = typer.Typer(help="List, show, copy and check recipes.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, or a YAML file.")]


@app.command("ls")
def ls() -> int:
    """List the shipped recipes."""
    from gbnn_compress_cli import tables

    from gbnn_compress.recipe import shipped_recipes

    rows = [(name, summary(text)) for name, text in shipped_recipes().items()]
    console.write_stdout(console.render(tables.facts(rows)))
    return 0


@app.command("show")
def show(name: Name) -> int:
    """Print the purpose of a recipe, and all of its values with their meaning, as YAML."""
    from gbnn_compress.recipe import heading, recipe_text, resolve

    about = heading(recipe_text(name))
    console.write_stdout("\n".join([*([about] if about else []), *_entries(resolve(name))]))
    return 0


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")],
) -> int:
    """Copy a shipped recipe to a file for editing."""
    from gbnn_compress.files import write_atomically
    from gbnn_compress.recipe import shipped_recipes

    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(f"unknown recipe `{name}`: expected one of {', '.join(shipped)}")
    if Path(file).exists():
        raise OutputError(f"cannot write `{file}`: it exists; move it away or choose another name")
    write_atomically(Path(file), shipped[name].encode())
    console.write_stdout(f"wrote {words.printable(file)}; use it with --recipe {words.printable(file)}\n")
    return 0


@app.command("validate")
def validate(file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file.")]) -> int:
    """Check a recipe; exit code 2 and one line if it is invalid."""
    from gbnn_compress.recipe import read_recipe, resolve

    resolve(file)
    given = ", ".join(f"{key}={_scalar(value)}" for key, value in read_recipe(file).items())
    console.write_stdout(f"{words.printable(file)} is valid; it sets {given or 'nothing'}\n")
    return 0


def _entries(recipe: "BaseModel", indent: str = "") -> "Iterator[str]":
    """Every key with its meaning, groups of keys indented."""
    from pydantic import BaseModel

    for key, field in type(recipe).model_fields.items():
        value = getattr(recipe, key)
        head = f"{indent}# {field.description}\n{indent}{key}:"
        if isinstance(value, BaseModel):
            yield f"{head}\n" + "\n".join(_entries(value, indent + "  "))
        else:
            yield f"{head} {_scalar(value)}\n"


def summary(text: str) -> str:
    """The first sentence of a recipe's heading."""
    from gbnn_compress.recipe import heading

    lines = [line.lstrip("# ").rstrip() for line in heading(text).splitlines()]
    return " ".join(itertools.takewhile(bool, lines)).partition(". ")[0].rstrip(".")


def _scalar(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
