"""Operations of matrix products and convolutions in a traced program, counted to the last one."""

import math

import jax


def products(function, *arguments) -> int:
    """Of ``function(*arguments)``: 2 per multiply-add of every product, loops as often as they run. Of a conditional
    the cheapest branch counts. Arguments may be shapes alone."""
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_inside(value) for value in equation.params.values()]
        inner = [each for group in inner for each in group]
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec
            total += 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[spec[0]])
        elif name == "scan":
            total += equation.params["length"] * _of(equation.params["jaxpr"].jaxpr)
        elif name == "cond":
            total += min(_of(branch.jaxpr) for branch in equation.params["branches"])
        else:
            if name == "while" and any(map(_of, inner)):
                raise NotImplementedError("a loop of unknown length has products")
            total += sum(map(_of, inner))
    return total


def _inside(value):
    """The programs in a parameter of an equation."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, (tuple, list)):
        return [each for part in value for each in _inside(part)]
    return []
