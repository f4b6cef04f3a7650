"""The model card of an export: what the model reached, and how it was made."""

import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from reasonjax import config as configs
from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.pretrained import Folder
from reasonjax.tracking.results import percent
from reasonjax.training.context import Run, stages_of
from reasonjax.training.saved_run import read_config

HUB_CACHE = re.compile(r'models--(?P<owner>[^/]+?)--(?P<name>[^/]+)')
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
inputs = {inputs}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```"""
USE_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)
```"""
CHAT = (
    "tokenizer.apply_chat_template(\n    [{'role': 'user', 'content': PROMPT}], "
    'add_generation_prompt=True, return_dict=True, '
    "return_tensors='pt'\n)"
)
PLAIN = "tokenizer(PROMPT, return_tensors='pt')"


class Made(NamedTuple):
    """A run on the way to a model: where it was, its config, and the last of its stages that
    counts."""

    workdir: pathlib.Path
    config: ml_collections.ConfigDict
    stage: str


def render(
    name: str,
    run: Run,
    folder: Folder | None,
    *,
    architecture: str,
    adapter: bool,
    stage: str = '',
    provenance: Sequence[str] = (),
) -> str:
    """Returns the text of a model card, README.md.

    Args:
      name: of the export.
      run: that made the parameters.
      folder: the Hugging Face folder it started from.
      architecture: as transformers calls it.
      adapter: the export is an adapter for that folder.
      stage: after which the parameters are; '' for the last.
      provenance: lines about the export itself.
    """
    lineage = _lineage(run.workdir, stage)
    base = _name_of(folder) if folder else ''
    what = f'A LoRA adapter for `{base}`' if adapter else f'A language model ({architecture})'
    start = '' if adapter else f' that started from `{base}`' if base else ', trained from scratch'
    chats = getattr(getattr(run.tokenizer, 'tokenizer', None), 'chat_template', None) is not None
    parts = [
        _front_matter(folder, lineage, adapter),
        f'# {name}',
        f'{what}{start}; made with reasonjax.',
        *_results(lineage),
        '## Use',
        USE_ADAPTER if adapter else USE.format(inputs=CHAT if chats else PLAIN),
        '## How it was made',
        *provenance,
        *(text for run in lineage for text in _told(run)),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def hub_name(folder: Folder) -> str:
    """Returns the Hub's name of a model in the Hub's cache; '' for a folder elsewhere."""
    match = HUB_CACHE.search(str(folder.path))
    return f'{match["owner"]}/{match["name"]}' if match else ''


def _name_of(folder: Folder) -> str:
    return hub_name(folder) or folder.path.resolve().name


def _lineage(workdir: pathlib.Path, stage: str) -> list[Made]:
    """Lists the runs that led to a model, the first one first; deleted runs are left out."""
    runs: list[Made] = []
    # Left out is also where a chain comes back to a run that is in it.
    while (workdir / 'config.json').is_file() and all(
        workdir.resolve() != run.workdir.resolve() for run in runs
    ):
        config = read_config(workdir)
        runs.insert(0, Made(workdir, config, stage))
        scheme, _, place = config.init.partition(':')
        if scheme != 'checkpoint':
            break
        before, _, stage = place.partition(':')
        workdir = pathlib.Path(before)
    return runs


def _stages(run: Made) -> list:
    """Lists the stages of a run, up to the one that gave the model."""
    every = stages_of(run.config, run.workdir)
    names = [stage.name for stage in every]
    return every[: names.index(run.stage) + 1] if run.stage in names else every


def _front_matter(folder: Folder | None, runs: Sequence[Made], adapter: bool) -> str:
    stages = [stage for run in runs for stage in _stages(run)]
    adapters = [
        stage.config.adapter.name
        for stage in stages
        if stage.config.get('adapter') and stage.config.adapter.name != 'none'
    ]
    trained = [stage.name for stage in stages if 'objective' in stage.config]
    tags = dict.fromkeys(['reasonjax', *trained, *(['lora'] if adapters else [])])
    lines = {
        'library_name': 'peft' if adapter else 'transformers',
        'pipeline_tag': 'text-generation',
    }
    if folder:
        lines |= {
            'base_model': json.dumps(_name_of(folder)),
            'base_model_relation': 'adapter' if adapter else 'finetune',
        }
        lines |= _license(folder)
    text = [f'{key}: {value}' for key, value in lines.items()]
    return '\n'.join(['---', *text, 'tags:', *(f'- {json.dumps(tag)}' for tag in tags), '---'])


def _license(folder: Folder) -> dict[str, str]:
    """Reads the licence that the base model's own card states."""
    file = folder.path / 'README.md'
    parts = (
        files.read_bytes(file).decode('utf-8', 'replace').split('---', 2) if file.is_file() else []
    )
    front = parts[1] if len(parts) == 3 and not parts[0].strip() else ''
    return dict(re.findall(r'^(license(?:_name|_link)?): *(\S.*)$', front, re.MULTILINE))


def _results(runs: Sequence[Made]) -> list[str]:
    rows = []
    for run in runs:
        for stage in _stages(run):
            record = _json(stage.folder / 'done.json')
            if 'accuracy' in record or 'sampled_accuracy' in record:
                length = record.get('mean_length')
                rows.append(
                    [
                        stage.name,
                        percent(record.get('accuracy'), record.get('ci95')),
                        percent(record.get('sampled_accuracy'), record.get('sampled_ci95')),
                        '-' if length is None else f'{length:.1f}',
                        str(record.get('problems', '-')),
                    ]
                )
    if not rows:
        return ['## Results', 'No stage was evaluated.']
    task = ', '.join(dict.fromkeys(_call(run.config.evaluation.task) for run in runs))
    heads = ['after stage', 'greedy [95 %]', 'sampled [95 %]', 'mean length, tokens', 'problems']
    return ['## Results', f'Task: `{task}`. Intervals are over problems.', _table(heads, rows)]


def _told(run: Made) -> list[str]:
    """Describes the stages, data, seed, environment and config of one run."""
    config = run.config
    rows = [[stage.name, *_stage_row(stage.config)] for stage in _stages(run)]
    environment = _json(run.workdir / 'environment.json')
    facts = [f'- seed: {config.seed}', f'- started from: {config.init or "fresh parameters"}']
    if 'command' in environment:
        facts.append(f'- command: `{environment["command"]}`')
    if {'device_count', 'device_kind', 'platform', 'python'} <= environment.keys():
        device = f'{environment["device_count"]} x {environment["device_kind"]} ({environment["platform"]})'
        facts.append(f'- on: {device}, Python {environment["python"]}')
    if isinstance(environment.get('versions'), dict):
        facts.append(
            '- versions: '
            f'{", ".join(f"{name} {version}" for name, version in environment["versions"].items())}'
        )
    resolved = f'<details><summary>Config, resolved</summary>\n\n```json\n{configs.to_json(config)}\n```\n\n</details>'
    heads = ['stage', 'kind', 'steps', 'data', 'objective', 'rewards', 'adapter', 'trained']
    return [
        f'### Run {run.workdir.resolve().name}',
        _table(heads, rows),
        '\n'.join(facts),
        resolved,
    ]


def _stage_row(settings: ml_collections.ConfigDict) -> list[str]:
    def called(key: str) -> str:
        return (
            f'`{_call(settings[key])}`' if key in settings and settings[key].name != 'none' else '-'
        )

    data = f'`{_call(settings.data.source)}`' if 'data' in settings else '-'
    rewards = ', '.join(f'`{_call(node)}`' for node in settings.get('rewards', {}).values()) or '-'
    return [
        settings.kind,
        str(settings.get('steps', '-')),
        data,
        called('objective'),
        rewards,
        called('adapter'),
        called('filter'),
    ]


def _call(node: Mapping[str, Any]) -> str:
    """Formats a function node as a call, without knobs that are empty."""
    return f'{node["name"]}({", ".join(f"{k}={v!r}" for k, v in node.items() if k != "name" and v not in (None, "", ()))})'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        heads,
        ['---'] * len(heads),
        *([cell.replace('|', '\\|') for cell in row] for row in rows),
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _json(path: pathlib.Path) -> dict:
    """Reads a JSON file that a card can do without; {} where the file is missing or damaged."""
    try:
        return files.json_object(path) if path.is_file() else {}
    except UserError as error:
        print(f'warning: {error} The card leaves out what it says.', file=sys.stderr)
        return {}
