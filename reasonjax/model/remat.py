"""What the backward pass recomputes, by name: `config.model.remat`."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from reasonjax.errors import UserError, check_choice, listing, nearest

# Results within a block that a policy may keep: of the products with the weights of these names,
# and of the attention itself.
NAMES = ('q', 'k', 'v', 'attended', 'o', 'gate', 'up', 'down')
POLICIES = ('none', 'full', 'dots')
LISTS = ('save', 'offload')


def named(x: jax.Array, name: str) -> jax.Array:
    """Marks a result within a block, so that a policy can keep it."""
    return checkpoint_name(x, name)


def check(remat: str) -> None:
    """Raises UserError where `remat` is no policy."""
    kind, colon, names = remat.partition(':')
    known = (*POLICIES, *(f'{kind}:NAME,...' for kind in LISTS))
    if kind not in (LISTS if colon else POLICIES):
        raise UserError(
            f'config.model.remat="{remat}": unknown.{nearest(kind, POLICIES + LISTS)} Known: '
            f'{listing(known)}.'
        )
    for name in names.split(',') if colon else ():
        check_choice(f'config.model.remat="{remat}": no result "{name}"', name, NAMES, 'Results')


def rematerialised(block: Callable, remat: str, static_argnums: tuple[int, ...]) -> Callable:
    """Returns a block whose backward pass recomputes what the policy does not keep.

    none          keeps everything, recomputes nothing
    dots          keeps products with weights
    full          keeps only the block's input
    save:A,B      keeps the results of these names
    offload:A,B   keeps them in the host's memory
    """
    if remat == 'none':
        return block
    kind, _, names = remat.partition(':')
    policies = {
        'full': lambda: None,
        'dots': lambda: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        'save': lambda: jax.checkpoint_policies.save_only_these_names(*names.split(',')),
        'offload': lambda: jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names.split(','),
            offload_src='device',
            offload_dst='pinned_host',
        ),
    }
    return jax.checkpoint(block, policy=policies[kind](), static_argnums=static_argnums)
