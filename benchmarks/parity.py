"""What `benchmarks.families` measures of one model, and what it has to keep to."""

import copy
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.family_cases import LENGTH, NEW, PROMPT, SHAPE, Case
from reasonjax.interop.huggingface import exported, pretrained
from reasonjax.model import config as model_config
from reasonjax.model.attention import causal
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import forward, logits
from reasonjax.model.logprobs import Scored
from reasonjax.model.score import score
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Rollout, Sampling, generate

UNOPTIMISED = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
# What a case must keep to. `sampler_bf16` is not bounded for mixtures: rounding may pick another
# expert where two are nearly as likely.
BOUNDS = {
    'padded': 1e-4,
    'packed': 1e-4,
    'gradient': 1e-3,
    'export': 1e-5,
    'sampler': 1e-4,
    'sampler_bf16': 0.15,
    'sampler_bf16_mean': 0.02,
}


def measure(
    case: Case, scans: Sequence[bool] = (False, True), quick: bool = False, rounded: bool = True
) -> dict:
    """Compares one random model here and in torch.

    Args:
      case: the model.
      scans: layer loops of the forward pass to try; the worst counts. The sampler always unrolls.
      quick: compile without optimisations, which is most of the time that a case takes.
      rounded: measure what there is in bfloat16 too: the sampler with such activations, and `bits`.

    Returns:
      largest      largest absolute logit
      padded       largest difference of logits, float32, in rows padded on the left and on the
                   right, which torch reads as one batch
      packed       the same in rows of several documents, each of which torch reads alone
      gradient     of the mean NLL of all documents: ||ours - theirs|| / ||theirs||, Euclidean, of
                   the worst tensor of the folder
      tensor       its name
      greedy       tokens of `generate` that the sampler repeats, of `tokens`
      gap          smallest difference between the two largest logits at those tokens: no tie
                   decides
      export       largest difference of torch's logits before our import and after our export
      config       whether the exported `config.json` reads back to the same `ModelConfig`
      sampler      largest difference, in nats, of log-probs and entropies between the sampler and
                   the scoring forward; with bfloat16 activations, `sampler_bf16`, and
                   `sampler_bf16_mean` is their mean
      bits         whether a bfloat16 folder is exported bit by bit as it was, through float32 and
                   through bfloat16 parameters
    """
    with tempfile.TemporaryDirectory() as name, jax.default_matmul_precision('highest'):
        root = pathlib.Path(name)
        model = random_model(case)
        model.save_pretrained(root / 'model')
        folder, config, params = imported(case, root / 'model', 'float32')
        batch, padded, packed = documents()
        theirs = torch_logits(model, case, batch, padded, packed)
        found = {
            'parameters': sum(x.size for x in jax.tree.leaves(params)),
            'padded': 0.0,
            'packed': 0.0,
            'gradient': 0.0,
        }
        found['largest'] = max(x.detach().abs().max().item() for x in theirs.values())
        save_gradient(model, batch, theirs, root / 'gradient')
        for scan in scans:
            config = dataclasses.replace(config, scan=scan)
            ours, _, gradient = reading(config, quick)(params, batch)
            difference = {
                doc: np.abs(np.asarray(ours)[doc[0], doc[1] : doc[2]] - x.detach().numpy()).max()
                for doc, x in theirs.items()
            }
            found['padded'] = max(found['padded'], *(float(difference[doc]) for doc in padded))
            found['packed'] = max(found['packed'], *(float(difference[doc]) for doc in packed))
            worst, tensor = gradient_difference(folder, config, gradient, root)
            if worst >= found['gradient']:
                found['gradient'], found['tensor'] = worst, tensor
        found |= exported_difference(case, folder, config, params, theirs, root / 'export')
        if rounded:
            found |= bits(case, model, root)
        return found | sampled(case, model, config, params, quick, rounded)


def random_model(case: Case) -> Any:
    """A torch model, float32, whose norms and biases are random too: their constants would hide
    mistakes."""
    import torch
    import transformers

    torch.manual_seed(case.seed)
    config = getattr(transformers, f'{case.family}Config')(**SHAPE | case.fields)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.add_(0.2 * noise) if 'norm' in name else weight.copy_(0.2 * noise)
    return model


def imported(
    case: Case, path: pathlib.Path, dtype: str
) -> tuple[pretrained.Folder, ModelConfig, dict]:
    """A folder, its shape and its parameters, on one device."""
    folder = pretrained.read_folder(path)
    config = as_config(case, folder, dtype)
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    return folder, config, pretrained.load(folder, config, mesh)


def as_config(case: Case, folder: pretrained.Folder, dtype: str) -> ModelConfig:
    run = {'param_dtype': dtype}
    if case.length:
        run['rope_scaling'] = folder.fields['rope_scaling'] | {'length': case.length}
    return model_config.from_config(folder.fields | run, vocab_size=SHAPE['vocab_size'], pad_id=-1)


def documents() -> tuple[dict, list, list]:
    """A batch, and (row, start, stop) of its documents: those alone in a padded row, and those
    packed."""
    padded = [(0, 0, LENGTH), (1, 0, 23), (2, LENGTH - 17, LENGTH), (3, 4, 35)]
    packed = [(4, 0, 12), (4, 12, 21), (4, 21, 37), (5, 0, 25), (5, 25, LENGTH)]
    batch = {name: np.zeros((6, LENGTH), np.int32) for name in ('tokens', 'positions', 'segments')}
    rng = np.random.default_rng(0)
    for number, (row, start, stop) in enumerate(padded + packed, 1):
        batch['tokens'][row, start:stop] = rng.integers(0, SHAPE['vocab_size'], stop - start)
        batch['positions'][row, start:stop] = np.arange(stop - start)
        batch['segments'][row, start:stop] = number
    follows = np.diff(batch['segments'], axis=1, prepend=0) == 0
    return (
        batch | {'weights': (follows & (batch['segments'] > 0)).astype(np.float32)},
        padded,
        packed,
    )


def torch_logits(model: Any, case: Case, batch: dict, padded: list, packed: list) -> dict:
    """Torch's logits [n, V] of every document."""
    import torch

    rows = len(padded)
    ids, positions, mask = (
        torch.from_numpy(batch[name][:rows].astype(np.int64))
        for name in ('tokens', 'positions', 'segments')
    )
    together = model(input_ids=ids, attention_mask=(mask > 0).long(), position_ids=positions).logits
    found = {doc: together[doc[0], doc[1] : doc[2]] for doc in padded}
    for row, start, stop in packed:
        alone = batch['tokens'][row, start:stop].astype(np.int64)
        # Frequencies that depend on the longest position are to be those of the run; what follows a
        # token cannot reach it.
        alone = np.pad(alone, (0, max(0, case.length - len(alone))))
        found[row, start, stop] = model(input_ids=torch.from_numpy(alone)[None]).logits[
            0, : stop - start
        ]
    return found


def save_gradient(model: Any, batch: dict, logits_of: dict, path: pathlib.Path) -> None:
    """Writes torch's gradient of the mean NLL as a folder, so that it is named and laid out as
    weights are."""
    import torch

    targets = torch.from_numpy(batch['tokens'].astype(np.int64))
    losses = [
        torch.nn.functional.cross_entropy(x[:-1], targets[row, start + 1 : stop], reduction='sum')
        for (row, start, stop), x in logits_of.items()
    ]
    model.zero_grad()
    (sum(losses) / float(batch['weights'].sum())).backward()
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, _ in weights:
        parameter.data = parameter.grad
    model.save_pretrained(path)
    for parameter, weight in weights:
        parameter.data = weight


def _compiled(function: Callable, quick: bool) -> Callable:
    return jax.jit(function, compiler_options=UNOPTIMISED if quick else None)


@functools.lru_cache(maxsize=4)
def reading(config: ModelConfig, quick: bool) -> Any:
    """Compiled `(params, batch) -> (logits [B, T, V], Scored, gradient of the mean NLL)`."""

    def loss(params: dict, batch: dict) -> tuple[jax.Array, tuple]:
        scored = score(params, config, batch)
        hidden = forward(
            params, config, batch['tokens'], batch['positions'], causal(config, batch['segments'])
        ).hidden
        return -(batch['weights'] * scored.logprob).sum() / batch['weights'].sum(), (
            logits(params, config, hidden),
            scored,
        )

    def run(params: dict, batch: dict) -> tuple[jax.Array, Scored, dict]:
        (_, (found, scored)), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return found, scored, gradient

    return _compiled(run, quick)


def gradient_difference(
    folder: pretrained.Folder, config: ModelConfig, gradient: dict, root: pathlib.Path
) -> tuple[float, str]:
    """The relative difference of the worst tensor, and its name."""
    from safetensors.numpy import load_file

    (root / 'ours').mkdir(exist_ok=True)
    exported.save_tensors(root / 'ours', folder.family, config, gradient, dtype='float32')
    ours, theirs = (load_file(root / name / 'model.safetensors') for name in ('ours', 'gradient'))
    if ours.keys() != theirs.keys():
        raise AssertionError(f'tensors in one folder only: {sorted(ours.keys() ^ theirs.keys())}')
    off = {
        name: np.linalg.norm(ours[name] - x) / np.linalg.norm(x)
        if x.any()
        else np.abs(ours[name]).max()
        for name, x in theirs.items()
    }
    worst = max(off, key=off.get)
    return float(off[worst]), worst


def exported_difference(
    case: Case,
    folder: pretrained.Folder,
    config: ModelConfig,
    params: dict,
    theirs: dict,
    path: pathlib.Path,
) -> dict:
    import transformers

    path.mkdir()
    exported.save_tensors(path, folder.family, config, params, dtype='float32', shard_bytes=20_000)
    exported.transformers_config(folder.family, config, folder.config).save_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation='eager'
    ).eval()
    batch, padded, packed = documents()
    again = torch_logits(model, case, batch, padded, packed)
    back = dataclasses.replace(
        as_config(case, pretrained.read_folder(path), config.param_dtype), scan=config.scan
    )
    return {
        'export': max((again[doc] - x).detach().abs().max().item() for doc, x in theirs.items()),
        'config': back == config,
    }


def bits(case: Case, model: Any, root: pathlib.Path) -> dict:
    import torch
    from safetensors.torch import load_file

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(root / 'half')
    wanted, same = load_file(root / 'half' / 'model.safetensors'), []
    for dtype in ('float32', 'bfloat16'):
        folder, config, params = imported(case, root / 'half', dtype)
        path = root / f'half_{dtype}'
        path.mkdir()
        exported.save_tensors(path, folder.family, config, params, dtype='bfloat16')
        found = load_file(path / 'model.safetensors')
        same.append(found.keys() == wanted.keys())
        same += [
            found[name].dtype == x.dtype == torch.bfloat16
            and torch.equal(found[name].view(torch.int16), x.view(torch.int16))
            for name, x in wanted.items()
            if name in found
        ]
    return {'bits': all(same)}


def prompts() -> dict:
    """Prompts of several lengths, padded on the left."""
    lengths, rng = (8, 5, 3, 1, 7, 2), np.random.default_rng(1)
    made = {
        name: np.zeros((len(lengths), PROMPT), np.int32)
        for name in ('tokens', 'positions', 'segments')
    }
    for row, n in enumerate(lengths):
        made['tokens'][row, -n:] = rng.integers(0, SHAPE['vocab_size'], n)
        made['positions'][row, -n:] = np.arange(n)
        made['segments'][row, -n:] = 1
    return made | {'index': np.arange(len(lengths))}


def sampled(
    case: Case, model: Any, config: ModelConfig, params: dict, quick: bool, rounded: bool
) -> dict:
    """Greedy tokens here and in torch, and log-probs of sampler and scoring forward."""
    given = prompts()
    ours = drawn(config, params, given, 0.0, quick)
    theirs = torch_greedy(model, case, given)
    batch = continued(given, ours)
    at_tokens, scored, _ = reading(config, quick)(params, batch)
    best = np.sort(np.asarray(at_tokens)[:, PROMPT - 1 : -1], axis=-1)
    found = {
        'greedy': int((np.asarray(ours.tokens)[:, 0] == theirs).sum()),
        'tokens': theirs.size,
        'gap': float((best[..., -1] - best[..., -2]).min()),
        'sampler': apart(ours, scored).max().item(),
    }
    if not rounded:
        return found
    config = dataclasses.replace(config, compute_dtype='bfloat16')
    ours = drawn(config, params, given, 1.0, quick)
    scored = _compiled(functools.partial(score, config=config), quick)(
        params, batch=continued(given, ours)
    )
    off = apart(ours, scored)
    return found | {'sampler_bf16': off.max().item(), 'sampler_bf16_mean': off.mean().item()}


def drawn(
    config: ModelConfig, params: dict, given: dict, temperature: float, quick: bool
) -> Rollout:
    sampling = Sampling(max_tokens=NEW, temperature=temperature)
    return _compiled(
        lambda params: generate(params, config, given, jax.random.key(0), sampling), quick
    )(params)


def continued(given: dict, rollout: Rollout) -> dict:
    """The batch that scores a rollout."""
    last = given['positions'][:, -1:]
    joined = {
        'tokens': np.concatenate([given['tokens'], np.asarray(rollout.tokens)[:, 0]], axis=1),
        'positions': np.concatenate([given['positions'], last + 1 + np.arange(NEW)], axis=1).astype(
            np.int32
        ),
        'segments': np.concatenate(
            [given['segments'], np.ones((len(last), NEW), np.int32)], axis=1
        ),
    }
    return joined | {'weights': np.ones(joined['tokens'].shape, np.float32)}


def apart(rollout: Rollout, scored: Scored) -> np.ndarray:
    """Differences of log-probs and entropies, [2, P, NEW]."""
    pairs = ((rollout.logprob, scored.logprob), (rollout.entropy, scored.entropy))
    return np.stack([np.abs(np.asarray(a)[:, 0] - np.asarray(b)[:, -NEW:]) for a, b in pairs])


def torch_greedy(model: Any, case: Case, given: dict) -> np.ndarray:
    """Tokens [P, NEW] of transformers' `generate`."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if case.length:
        # Keys in torch's cache would keep the frequencies of when they were made.
        rotary = model.model.rotary_emb
        rotary.inv_freq, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[rotary.rope_type](
            model.config, seq_len=case.length
        )
        rotary.rope_type = 'default'
    ids, mask = (torch.from_numpy(given[name].astype(np.int64)) for name in ('tokens', 'segments'))
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[:, PROMPT:].numpy()


def failures(case: Case, row: dict) -> list[str]:
    """What of a measured row is not as it should be."""
    bounds = {k: v for k, v in BOUNDS.items() if k != 'sampler_bf16' or not case.mixture}
    # Not `>`: nan is a failure too.
    found = [
        f'{name} {row[name]:.1e} is not within {bound:.0e}'
        for name, bound in bounds.items()
        if not row[name] <= bound
    ]
    found += (
        [f'{row["greedy"]} of {row["tokens"]} greedy tokens agree']
        if row['greedy'] != row['tokens']
        else []
    )
    return found + [f'{name} differs' for name in ('config', 'bits') if not row[name]]
