"""Mutants of the Hopper kernels: each synchronisation that can be taken away, by their source."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mudit_engine.profiling.simulator import SynchronisationFault

REGISTERS = ("p1", "p2", "ds1", "ds2")
"""Names of operands that lie in registers."""


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


@dataclass(frozen=True)
class Mutation:
    """One synchronisation taken away: where, how, and the head width that gets there."""

    line: int
    kind: str
    head_dim: int


def mutations(kernels: str) -> dict[str, Mutation]:
    """Each synchronisation of a kernel file that can be taken away, found in its source."""
    tree = ast.parse(Path(importlib.util.find_spec(kernels).origin).read_text())
    whole = {
        node.lineno
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "REST > 0"
        for top in branch.orelse
        for node in ast.walk(top)
        if hasattr(node, "lineno")
    }
    found = {}

    def add(node: ast.AST, what: str, kind: str) -> None:
        # a head of 96 is two chunks, one of 64 is whole
        head_dim = 64 if node.lineno in whole else 96
        found[f"{node.lineno}: {what}"] = Mutation(node.lineno, kind, head_dim)

    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and is_call(
            node.value,
            "mbarrier.wait",
            "mbarrier.arrive",
            "mbarrier.expect",
            "fence_async_shared",
        ):
            add(node, f"no {ast.unparse(node.value)}", "remove")
        elif is_call(node, "warpgroup_mma_wait"):
            add(node, f"{ast.unparse(node)} one later", "later")
            for kept in ast.walk(node.keywords[0].value):
                if isinstance(kept, ast.Name) and kept.id in REGISTERS:
                    add(node, f"{kept.id} not kept", f"drop {kept.id}")
        elif is_call(node, "mbarrier.init") and ast.unparse(node).endswith("count=2)"):
            add(node, f"{ast.unparse(node)} of one", "count")
        elif (
            isinstance(node, ast.For)
            and "static_range" in ast.unparse(node.iter)
            and any(is_call(part, "mbarrier.wait") for part in ast.walk(node))
        ):
            add(node, f"one round of {ast.unparse(node.iter)}", "once")
    return found


class Mutate(ast.NodeTransformer):
    def __init__(self, line: int, kind: str) -> None:
        self.line, self.kind, self.done = line, kind, False

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if node.lineno == self.line and self.kind == "remove":
            self.done = True
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        if node.lineno == self.line and self.kind == "once":
            node.iter.args[0] = ast.Constant(1)
            self.done = True
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if node.lineno == self.line and self.kind.startswith("drop"):
            name = self.kind.split()[1]
            targets, deps = node.targets[0].elts, node.value.keywords[0].value.elts
            place = [ast.unparse(one) for one in deps].index(name)
            del targets[place], deps[place]
            self.done = True
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if (
            node.lineno == self.line
            and self.kind == "later"
            and is_call(node, "warpgroup_mma_wait")
        ):
            node.args[0] = ast.BinOp(node.args[0], ast.Add(), ast.Constant(1))
            self.done = True
        if node.lineno == self.line and self.kind == "count" and is_call(node, "mbarrier.init"):
            node.keywords[0].value = ast.Constant(1)
            self.done = True
        return self.generic_visit(node)


def noticed(
    mutation: Mutation, run: Callable[[int, Callable[[ast.Module], ast.Module]], None], seeds: int
) -> str:
    """What gives a mutant away, or "" when it passes under every schedule. run(seed, change): the
    case of the mutant, held to the truth.
    """

    def change(tree: ast.Module) -> ast.Module:
        mutate = Mutate(mutation.line, mutation.kind)
        tree = mutate.visit(tree)
        assert mutate.done
        return tree

    for seed in range(seeds):
        try:
            run(seed, change)
        except SynchronisationFault as fault:
            return f"seed {seed}: {fault}"
        except AssertionError as fault:
            return f"seed {seed}: wrong, {str(fault)[:60]}"
    return ""
