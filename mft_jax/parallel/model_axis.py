"""The two places of a layer where devices of the model axis work together, in a function that runs on each device.

As in Megatron-LM (Shoeybi et al. 2019, "f" and "g"): the linear layers of an input are split by their outputs, and the one
that follows by its inputs, so a device needs the others only before and after. Every device of the axis has the whole
gradient of what is replicated over it.
"""

import jax
from jaxtyping import Array, Float, PyTree

from mft_jax.parallel.mesh import RULES

_AXIS = RULES["heads"]
SUMMED = "summed over the model axis"  # for policies of `jax.checkpoint`


@jax.custom_vjp
def copy_to_model_axis(arrays: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """The arrays themselves, before layers of which each device has a part. The terms of their gradients are summed up."""
    return arrays


copy_to_model_axis.defvjp(lambda arrays: (arrays, None), lambda _, gradients: (jax.lax.psum(gradients, _AXIS),))


@jax.custom_vjp
def sum_over_model_axis(terms: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """The sums of the devices' terms. The gradient of each term is that of its sum."""
    return jax.lax.psum(terms, _AXIS)


sum_over_model_axis.defvjp(lambda terms: (jax.lax.psum(terms, _AXIS), None), lambda _, gradients: (gradients,))


@jax.custom_vjp
def replicated_argument(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, which all devices of the axis have, as an argument of `jax.shard_map` without `check_vma`.

    `shard_map` adds up the devices' gradients of it, but each has the whole gradient already.
    """
    return x


replicated_argument.defvjp(lambda x: (x, None), lambda _, gradient: (gradient / jax.lax.axis_size(_AXIS),))


@jax.custom_vjp
def replicated_result(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, which all devices of the axis have, as a result of `jax.shard_map` without `check_vma`.

    `shard_map` divides the gradient of such a result among the devices; here each gets the whole again.
    """
    return x


replicated_result.defvjp(lambda x: (x, None), lambda _, gradient: (gradient * jax.lax.axis_size(_AXIS),))
