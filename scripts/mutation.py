"""A module broken in one place at a time: the wrong signs, betas, factors and forgotten updates that tests must see.

    arithmetic   + and -, * and / exchanged, also in += and in torch's methods (add_, _foreach_mul_, addcmul, ...)
    power        x ** y is x
    minus        a minus sign, or a `not`, is dropped
    bias         1.0 - x is x
    reduction    sum and mean, max and min, ceil and floor, triu and tril, sqrt and square, any and all exchanged
    sign         alpha=x and value=x are -x
    comparison   is its contrary; `and` and `or` exchanged
    constant     n is n + 1, a float is twice itself (0.0 is 1.0), a bool is its contrary
    option       options["momentum"] and so on are a constant, as NEUTRAL has them
    deleted      a statement that changes something is `pass`

Left alone, because none of it is a rule's arithmetic: annotations, decorators, text and errors, conditions whose only
consequence is an error about options (refusals have tests of their own), declarations (a SPEC's words and defaults,
which the documentation's table is compared with; functions of state_bytes, which say "at most").
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

NEUTRAL = {
    "lr": "1.0", "betas": "(0.0, 0.0)", "adam_betas": "(0.0, 0.0)", "weight_decay": "0.0", "momentum": "0.0",
    "damping": "0.0", "eps": "0.0", "graft_eps": "0.0", "gamma": "1.0", "interval": "1", "factor_interval": "1",
    "inverse_interval": "1", "damping_interval": "1", "factor_decay": "0.0", "trust_coefficient": "1.0",
    "momentum_decay": "0.0", "initial_accumulator": "0.0", "exponent": "0", "start": "0", "kl_clip": "0.0",
    "max_kl": "1.0", "history": "1", "max_trials": "1", "c1": "0.0", "c2": "0.0", "cg_tolerance": "0.0", "rho": "0.0",
    "decoupled": "False", "nesterov": "False", "centered": "False", "debias": "False", "min_curvature": "0.0",
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip
_CONTRARY: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_PAIRS = {
    "arithmetic": [("add", "sub"), ("mul", "div"), ("addcmul", "addcdiv")],
    "reduction": [
        ("sum", "mean"), ("max", "min"), ("amax", "amin"), ("maximum", "minimum"), ("clamp_min", "clamp_max"),
        ("sqrt", "square"), ("triu", "tril"), ("ceil", "floor"), ("any", "all"), ("exp", "log"),
    ],
}  # fmt: skip
_NAMES = {
    form.format(one): (operator, form.format(other))
    for operator, pairs in _PAIRS.items()
    for pair in pairs
    for one, other in (pair, pair[::-1])
    for form in ("{}", "{}_", "_foreach_{}", "_foreach_{}_")
}
_QUIET_KEYWORDS = ("strict", "fused", "non_blocking", "allow_unused", "foreach", "maxsize", "memory_format")
_REFUSALS = ("UserError", "ValueError", "dense_only")


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Args:
        file: the module's file name.
        function: qualified name of the function that is changed; "" at module level.
        operator: one of the module's docstring.
        line: the changed source line, stripped.
        was: the source text that is replaced.
        becomes: by what.
        span: first and last line of the statement that it is in; (0, 0) where importing the module runs it.
        source: the whole module, changed.
    """

    file: str
    function: str
    operator: str
    line: str
    was: str
    becomes: str
    span: tuple[int, int]
    source: str

    @property
    def key(self) -> str:
        """Of the module and the change: another as soon as either is."""
        return hashlib.sha256(f"{self.file}\n{self.source}".encode()).hexdigest()[:16]

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What the list of equivalent mutants names: no line numbers."""
        return self.file, self.function, self.operator, self.line


@dataclass(frozen=True)
class _Place:
    name: str = ""
    span: tuple[int, int] = (0, 0)
    in_function: bool = False


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of a module."""
    text, lines = source.encode(), source.splitlines()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node, place, operator, becomes in _sites(ast.parse(source), _Place()):
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        new = becomes if isinstance(node, ast.stmt) else f"({becomes})"
        changed = (text[:begin] + new.encode() + text[end:]).decode()
        line, was = lines[node.lineno - 1].strip(), text[begin:end].decode()
        found.append(Mutant(file, place.name, operator, line, was, becomes, place.span, changed))
    return found


Site = tuple["ast.stmt | ast.expr", _Place, str, str]


def _sites(node: ast.AST, place: _Place) -> Iterator[Site]:
    """Every place under a node that can be broken, with the source text that breaks it."""
    if isinstance(node, ast.stmt):
        place = _within(node, place)
    if isinstance(node, ast.stmt | ast.expr):
        for operator, becomes in _changes(node):
            yield node, place, operator, becomes
    for child in _children(node):
        yield from _sites(child, place)


def _within(node: ast.stmt, place: _Place) -> _Place:
    """The place inside a statement: of a compound one the header's lines, the body's statements have their own."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return _Place(f"{place.name}.{node.name}".lstrip("."), in_function=isinstance(node, ast.FunctionDef))
    if not place.in_function:
        return place
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) else node.end_lineno
    return replace(place, span=(node.lineno, max(node.lineno, last or node.lineno)))


def _children(node: ast.AST) -> list[ast.AST]:
    """What is looked at under a node."""
    if isinstance(node, ast.FunctionDef):
        declares = node.name.endswith("_bytes")
        return [] if declares else [*node.args.defaults, *(d for d in node.args.kw_defaults if d), *node.body]
    if isinstance(node, ast.ClassDef):
        return list(node.body)
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return []
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value else []
    if isinstance(node, ast.If) and _only_refuses(node.body):
        return list(node.orelse)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_declaration(node):
        return [k.value for k in getattr(node.value, "keywords", ()) if k.arg == "factory"]
    if isinstance(node, ast.Call):
        loud = [k.value for k in node.keywords if k.arg not in _QUIET_KEYWORDS]
        return [node.func, *node.args, *loud]
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return []
    return list(ast.iter_child_nodes(node))


def _is_declaration(node: ast.Assign) -> bool:
    target = node.targets[0]
    return isinstance(target, ast.Name) and target.id in ("SPEC", "__all__")


def _only_refuses(body: list[ast.stmt]) -> bool:
    (last,) = body[-1:]
    raised = last.exc if len(body) == 1 and isinstance(last, ast.Raise) else None
    return isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name) and raised.func.id in _REFUSALS


def _changes(node: ast.stmt | ast.expr) -> Iterator[tuple[str, str]]:
    """Operators that apply to a node, and what it becomes."""
    match node:
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _ARITHMETIC:
            yield "arithmetic", ast.unparse(ast.AugAssign(target, _ARITHMETIC[type(op)](), value))
        case ast.BinOp():
            yield from _arithmetic(node)
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            yield from _logic(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "minus", ast.unparse(operand)
        case ast.Call():
            yield from _calls(node)
        case ast.Constant(value=bool() | int() | float() as value):
            yield "constant", _other(value)
        case ast.Subscript(value=held, slice=ast.Constant(value=str() as name), ctx=ast.Load()):
            if name in NEUTRAL and ast.unparse(held) in ("options", "group", "self.defaults"):
                yield "option", NEUTRAL[name]
    match node:
        case (
            ast.AugAssign()
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            | ast.Expr(value=ast.Call())
            | ast.Delete()
        ):
            yield "deleted", "pass"


def _arithmetic(node: ast.BinOp) -> Iterator[tuple[str, str]]:
    if type(node.op) in _ARITHMETIC:
        yield "arithmetic", ast.unparse(ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))
    if isinstance(node.op, ast.Pow):
        yield "power", ast.unparse(node.left)
    if isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant) and node.left.value == 1:
        yield "bias", ast.unparse(node.right)


def _logic(node: ast.Compare | ast.BoolOp | ast.UnaryOp) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.UnaryOp):
        yield "minus", ast.unparse(node.operand)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "comparison", ast.unparse(ast.BoolOp(other, node.values))
    else:
        for at, op in enumerate(node.ops):
            flipped = [*node.ops[:at], _CONTRARY[type(op)](), *node.ops[at + 1 :]]
            yield "comparison", ast.unparse(ast.Compare(node.left, flipped, node.comparators))


def _calls(node: ast.Call) -> Iterator[tuple[str, str]]:
    """Functions and methods exchanged for their counterparts, and signs of factors given by name."""
    func = node.func
    name = func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
    if name in _NAMES and not (isinstance(func, ast.Name) and name == "sum"):
        operator, other = _NAMES[name]
        renamed = ast.Attribute(func.value, other) if isinstance(func, ast.Attribute) else ast.Name(other)
        yield operator, ast.unparse(ast.Call(renamed, node.args, node.keywords))
    for at, keyword in enumerate(node.keywords):
        if keyword.arg in ("alpha", "value"):
            turned = ast.keyword(keyword.arg, ast.UnaryOp(ast.USub(), keyword.value))
            yield (
                "sign",
                ast.unparse(ast.Call(func, node.args, [*node.keywords[:at], turned, *node.keywords[at + 1 :]])),
            )


def _other(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return str(not value)
    return str(value + 1) if isinstance(value, int) else str(value * 2.0 or 1.0)
