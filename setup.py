"""reasonjax: fine-tune language models to reason, in pure JAX."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (here / 'reasonjax' / '__init__.py').read_text(encoding='utf-8')).group(1)

setup(
    name='reasonjax',
    version=version,
    description='Fine-tune language models to reason: SFT, preference optimisation and GRPO as configs of one small JAX core.',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['reasonjax', 'reasonjax.*']),
    python_requires='>=3.11',
    install_requires=[
        # No accelerator pin: CPU, CUDA and TPU users choose their own jax (BUILD.md).
        # jaxlib 0.10.2 silently miscomputes some CPU reductions; releases after it are admitted when they pass `reasonjax.selfcheck`.
        'jax>=0.10.1,!=0.10.2',
        'jaxlib>=0.10.1,!=0.10.2',
        'absl-py',
        'flax>=0.12',
        'grain>=0.2.18',
        'jinja2',
        'matplotlib',
        'ml_collections>=1.1',
        'numpy',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pebble',
        'pyarrow',
        'regex',
        'rich',
        'safetensors>=0.5',
        'sentencepiece>=0.2.1',
        'tensorflow-datasets>=4.9.10',
        'transformers>=5',
    ],
    extras_require={
        'test': [
            'pytest', 'pytest-xdist', 'ruff>=0.12,<0.18', 'scipy', 'tensorboardX', 'torch==2.13.0', 'peft>=0.19', 'lm-eval>=0.4.13',
            'trl>=1.16',  # for its chat templates
        ],
        'eval': ['lm-eval>=0.4.13'],
        'tasks': ['math-verify[antlr4_13_2]'],
        'bench': ['torch==2.13.0'],  # benchmarks.families; benchmarks.peers makes environments of its own
        'plan': ['libtpu'],
        'kernels': ['tokamax>=0.0.12'],
    },
)
