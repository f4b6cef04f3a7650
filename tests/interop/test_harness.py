"""The adapter for lm-evaluation-harness: against recomputation, the harness's own torch adapter,
and whole runs of its evaluator."""

import dataclasses
import functools
import json
import runpy
import socket
import sys

import jax
import numpy as np
import pytest
import small_runs
import toys
import yaml
from tokenizer_folders import write_folder

from reasonjax.errors import UserError
from reasonjax.interop.huggingface import pretrained
from reasonjax.interop.huggingface.tokenizers import huggingface
from reasonjax.model import config as model_config
from reasonjax.model import spec
from reasonjax.reporting import report
from reasonjax.sampling.sampler import Sampling
from reasonjax.training.answer_prompts import sample
from reasonjax.training.context import fresh_params, open_run
from reasonjax.training.run import run as run_stages
from reasonjax.training.run import trained

lm_eval = pytest.importorskip('lm_eval')

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from reasonjax.interop.lm_eval import Harness, bucket, cut_at, request_of  # noqa: E402

PROMPTS = ['12+34=', '5+6=', '99+1=', '1234+5678=', '7+8=', '0+0=', '31+4=']


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(
        socket.socket, 'connect', lambda *arguments: pytest.fail('a test reached for the network')
    )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A finished run of two training stages on addition, the second with an adapter."""
    folder = tmp_path_factory.mktemp('harness') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        run_stages(small_runs.quiet('configs/lora.py'), folder)
    return folder


@pytest.fixture(scope='module')
def opened(workdir):
    """The run with sharper random weights: what its few steps leave is nearly uniform."""
    of_run, params = trained(workdir)
    return of_run, jax.tree.map(lambda x: 2 * x, params)


@pytest.fixture(scope='module')
def chatty(tmp_path_factory):
    """A fresh model, and a tokenizer that puts BOS in front of a text, with a chat template that
    writes it too."""
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + "
        "'<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' + (opening or '') }}{% endif %}"
    )
    folder = write_folder(tmp_path_factory.mktemp('chat'), bos='<s>', template=template)
    of_run = open_run(
        small_runs.quiet('configs/sft.py', tokenizer__name='huggingface', tokenizer__path=folder),
        folder,
        active=False,
    )
    return of_run, jax.tree.map(lambda x: 3 * x, fresh_params(of_run))


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def logprobs(opened, ids):
    """[T - 1, V] float64: row t is the distribution that predicts ids[t + 1]."""
    of_run, params = opened
    z = np.asarray(
        toys.all_logits(of_run.model)(params, toys.batch([list(ids)], rows=1, length=48)),
        np.float64,
    )[0, : len(ids) - 1]
    return (
        z
        - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - z.max(-1, keepdims=True)
    )


def expected(opened, context, continuation):
    """(log-prob, greedy) of continuation ids after context ids."""
    table = logprobs(opened, [*context, *continuation])[len(context) - 1 :]
    return sum(row[i] for row, i in zip(table, continuation, strict=True)), [
        row.argmax() for row in table
    ] == list(continuation)


def greedy_text(opened, prompt, length):
    """The most likely continuation, one token at a time; None where it is not plain text."""
    ids = opened[0].tokenizer.encode(prompt)
    for _ in range(length):
        ids.append(int(logprobs(opened, [*ids, 1])[-1].argmax()))
    text = opened[0].tokenizer.decode(ids[-length:])
    return text if len(text) == length else None


def write_task(folder, name, rows, **fields):
    """A task of the harness over local rows."""
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    data = {
        'data_files': {'test': str(folder / f'{name}.jsonl')},
        'cache_dir': str(folder / 'cache'),
    }
    task = {
        'task': name,
        'dataset_path': 'json',
        'dataset_kwargs': data,
        'test_split': 'test',
        **fields,
    }
    (folder / f'{name}.yaml').write_text(yaml.safe_dump(task))


def evaluate(model, folder, *tasks, **options):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
    )


@pytest.mark.parametrize('batch_size', [1, 7])
def test_loglikelihood(opened, batch_size):
    """Of many lengths, in order, in batches as alone; the last of the pairs are what the model
    would say itself."""
    tokenizer, greedy = (
        opened[0].tokenizer,
        [(p, text) for p in PROMPTS for n in (1, 2, 3) if (text := greedy_text(opened, p, n))],
    )
    nearly = next((p, text[:-1] + '98'[text[-1] == '9']) for p, text in greedy if len(text) > 1)
    asked = [
        ('12+34=', '46'),
        ('1+1=', '#2$'),
        ('', '7+8='),
        ('1234+5678=', '0'),
        ('9', '9' * 30),
        ('', '1'),
        nearly,
        *greedy,
    ]
    found = Harness(*opened, batch_size=batch_size).loglikelihood(
        requests('loglikelihood', *asked), disable_tqdm=True
    )
    wanted = [
        expected(opened, tokenizer.encode(c) or [tokenizer.eos_ids[0]], tokenizer.encode(more))
        for c, more in asked
    ]
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in wanted], atol=1e-5, rtol=1e-6)
    assert [x for _, x in found] == [x for _, x in wanted]
    assert greedy and all(x for _, x in found[7:]) and not all(x for _, x in found[:7])


def test_text_is_cut_on_the_left_aloud(opened, caplog):
    harness = Harness(*opened, max_length=8)
    short = dataclasses.replace(
        opened[0], model=dataclasses.replace(opened[0].model, max_positions=32)
    )
    assert [
        Harness(*opened).max_length,
        Harness(short, opened[1]).max_length,
        harness.max_length,
    ] == [2048, 32, 8]
    with pytest.raises(
        UserError, match='max_length=33: the positions of this model are good for 32'
    ):
        Harness(short, opened[1], max_length=33)
    context, more = '1234+5678=', '912'
    (found,) = harness.loglikelihood(requests('loglikelihood', (context, more)))
    kept = opened[0].tokenizer.encode((context + more)[-9:])
    np.testing.assert_allclose(found[0], expected(opened, kept[:6], kept[6:])[0], atol=1e-5)
    assert (
        harness.truncated['loglikelihood'] == 1
        and '1 of 1 contexts do not fit max_length=8 and lose up to 4 tokens' in caplog.text
    )
    caplog.clear()
    harness.loglikelihood(requests('loglikelihood', ('123456', '912')))
    assert not caplog.text and harness.get_model_info()['truncated']['loglikelihood'] == 1
    with pytest.raises(UserError, match='9 tokens, but max_length=8'):
        harness.loglikelihood(requests('loglikelihood', ('1', '2' * 9)))


def test_rolling_is_the_sum_over_windows(opened):
    """Windows of L tokens; each but the first is given the L tokens before its last, as far as
    these go."""
    L, texts = 5, ['7', '12+34', '12+34=', '1234+5678=#6912', '', '12+34=46' * 4]
    found = Harness(*opened, max_length=L, batch_size=3).loglikelihood_rolling(
        requests('loglikelihood_rolling', *((t,) for t in texts))
    )
    for text, total in zip(texts, found, strict=True):
        ids, wanted = [opened[0].tokenizer.eos_ids[0], *opened[0].tokenizer.encode(text)], 0.0
        for first in range(1, len(ids), L):
            last = min(first + L, len(ids))
            begin = max(0, last - L - 1)
            wanted += expected(opened, ids[begin:first], ids[first:last])[0]
        assert total == pytest.approx(wanted, abs=1e-5), text


SETTINGS = [
    {'until': [], 'max_gen_toks': 6, 'do_sample': False},
    {
        'until': ['+', '#', *(before + mark for before in ',=0123456789' for mark in '+#')],
        'max_gen_toks': 9,
    },
    {'until': '1', 'max_new_tokens': 9, 'temperature': 0.0},
    {
        'until': ['Q:', ''],
        'max_gen_toks': 6,
        'do_sample': True,
        'temperature': 1.5,
        'top_k': 5,
        'top_p': 0.9,
        'min_p': 0.01,
    },
]


def test_generation_is_that_of_the_sample_program(opened):
    """Settings alternate from request to request; each answer is the plain one, cut at the first
    stop string."""
    asked = [(prompt, setting) for prompt in PROMPTS for setting in SETTINGS]
    found = Harness(*opened, batch_size=3, seed=3).generate_until(
        requests('generate_until', *asked), disable_tqdm=True
    )
    sampling = [
        Sampling(max_tokens=n, temperature=0.0, eos_ids=opened[0].tokenizer.eos_ids) for n in (6, 9)
    ]
    drawn = Sampling(
        max_tokens=6,
        temperature=1.5,
        top_k=5,
        top_p=0.9,
        min_p=0.01,
        eos_ids=opened[0].tokenizer.eos_ids,
    )
    # The place of a request in the list counts for the draw: ask at the same places.
    plain = [
        [c[0]['text'] for _, c in sample(*opened, [p for p, _ in asked], s, 3, 4)]
        for s in (*sampling, drawn)
    ]
    wanted = [plain[(0, 1, 1, 2)[i % 4]][i] for i in range(len(asked))]
    assert found[::4] == wanted[::4] and found[3::4] == wanted[3::4]
    cuts = [
        min([text.find(s) for s in SETTINGS[1]['until'] if s in text] + [len(text)])
        for text in wanted[1::4]
    ]
    assert found[1::4] == [text[:end] for text, end in zip(wanted[1::4], cuts)]
    assert found[2::4] == [text.partition('1')[0] for text in wanted[2::4]]
    assert len(set(plain[2])) > 5 and found[1::4] + found[2::4] != wanted[1::4] + wanted[2::4]


def test_the_seed_decides_what_is_sampled(opened):
    asked = requests('generate_until', *[(PROMPTS[0], {'do_sample': True, 'max_gen_toks': 6})] * 6)
    first, same, other = (Harness(*opened, seed=seed).generate_until(asked) for seed in (0, 0, 1))
    assert first == same != other and len(set(first)) > 3


def test_prompts_without_room(opened, caplog):
    harness = Harness(*opened, max_length=10, max_gen_toks=6)
    long, short = harness.generate_until(
        requests('generate_until', ('1234+5678=', {}), ('678=', {}))
    )
    assert (
        long == short
        and harness.truncated['generate_until'] == 1
        and 'lose up to 6 tokens' in caplog.text
    )
    with pytest.raises(UserError, match='max_gen_toks=10 leaves no room'):
        harness.generate_until(requests('generate_until', ('1+1=', {'max_gen_toks': 10})))


def test_generation_settings(opened, caplog):
    tokenizer = opened[0].tokenizer
    assert request_of({}, tokenizer, 5).sampling == Sampling(
        max_tokens=5, temperature=0.0, eos_ids=tokenizer.eos_ids
    )
    greedy, plain = (
        request_of({'do_sample': drawn, 'top_p': 0.3}, tokenizer, 5).sampling
        for drawn in (False, True)
    )
    assert (greedy.temperature, greedy.top_p) == (0, 1) and (plain.temperature, plain.top_p) == (
        1,
        0.3,
    )
    drawn = request_of({'temperature': 0.3, 'top_k': -1}, tokenizer, 5).sampling
    assert drawn == Sampling(max_tokens=5, temperature=0.3, eos_ids=tokenizer.eos_ids)
    stopped = request_of({'until': ['#', '##', 'Z'], 'max_tokens': 7}, tokenizer, 5).sampling
    assert stopped.max_tokens == 7 and stopped.eos_ids == (
        *tokenizer.eos_ids,
        *tokenizer.encode('#'),
    )
    assert (
        not caplog.text
        and request_of({'do_sample': False, 'temperature': 0.3}, tokenizer, 5).sampling.temperature
        == 0
    )
    assert 'decoding is greedy' in caplog.text
    assert cut_at('a b c', ['c', 'b']) == 'a ' and cut_at('abc', []) == 'abc'
    assert (
        all(n <= bucket(n) <= max(n + 15, 1.25 * n) for n in range(1, 5000))
        and len({bucket(n) for n in range(1, 4097)}) < 32
    )


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'temprature': 1},
            'generation_kwargs: "temprature" is not known. Did you mean "temperature"?',
        ),
        (
            {'num_beams': 4},
            '"num_beams" is not known. Known: do_sample, max_completion_tokens, max_gen_toks',
        ),
        ({'do_sample': True, 'temperature': 0}, 'contradiction'),
        ({'do_sample': 'false'}, "do_sample must be true or false, got 'false'"),
        ({'do_sample': [True]}, 'do_sample must be'),
        ({'temperature': 'warm'}, 'must be numbers'),
        ({'temperature': 1, 'top_p': 2}, 'top_p=2'),
        ({'until': 3}, 'until must be'),
        ({'max_gen_toks': 0}, 'max_gen_toks=0'),
        ({'max_gen_toks': 3, 'max_tokens': 4}, 'names of one limit'),
    ],
)
def test_bad_generation_settings(opened, settings, message):
    with pytest.raises(UserError) as error:
        Harness(*opened).generate_until(requests('generate_until', ('1+1=', settings)))
    assert message in str(error.value)


def test_bos_and_spaces(chatty):
    """BOS once, blanks at the end of a context go to the continuation, and nothing but blanks
    leaves the prefix alone."""
    harness, tokenizer = Harness(*chatty), chatty[0].tokenizer
    bos = tokenizer.bos_id
    assert harness.prefix_token_id == bos and harness.eot_token_id == tokenizer.eos_ids[0]
    assert (
        harness.tok_encode('Tom') == harness.tok_encode('<s>Tom') == [bos, *tokenizer.encode('Tom')]
    )
    assert harness.tok_encode('Tom', add_special_tokens=False) == tokenizer.encode('Tom')
    asked = [
        ('Tom has ', '12 apples'),
        ('<s>Tom has', ' 12 apples'),
        ('Tom has', ' 12 apples'),
        ('', 'Tom'),
        (' ', 'Tom'),
        ('', '<s>Tom'),
    ]
    found = harness.loglikelihood(requests('loglikelihood', *asked))
    sentence = expected(
        chatty, [bos, *tokenizer.encode('Tom has')], tokenizer.encode(' 12 apples')
    )[0]
    word, blank = (expected(chatty, [bos], tokenizer.encode(text))[0] for text in ('Tom', ' Tom'))
    assert len(tokenizer.encode(' 12 apples')) > 2
    np.testing.assert_allclose(
        [x for x, _ in found], [sentence] * 3 + [word, blank, word], atol=1e-4
    )
    rolled = harness.loglikelihood_rolling(requests('loglikelihood_rolling', ('Tom',), ('<s>Tom',)))
    np.testing.assert_allclose(rolled, word, atol=1e-4)
    assert Harness(*chatty, add_bos_token=False).tok_encode('Tom') == tokenizer.encode('Tom')


def test_chat(chatty, opened, tmp_path, caplog):
    """Few-shot examples as turns, one BOS, and a last message that is left open."""
    rows = [{'q': f'Number {i}?', 'a': str(i)} for i in range(4)]
    write_task(
        tmp_path,
        'chat',
        rows,
        output_type='generate_until',
        doc_to_text='{{q}}',
        doc_to_target='{{a}}',
        fewshot_split='test',
        generation_kwargs={'until': ['\n'], 'max_gen_toks': 4},
        metric_list=[{'metric': 'exact_match'}],
        num_fewshot=1,
    )
    harness = Harness(*chatty)
    results = evaluate(
        harness,
        tmp_path,
        'chat',
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        system_instruction='Count.',
    )
    texts = [s['arguments'][0][0] for s in results['samples']['chat']]
    for text, row in zip(texts, rows, strict=True):
        assert text.startswith('<s>[system]Count.<|im_end|>[user]Number ') and text.endswith(
            f'[user]{row["q"]}<|im_end|>[assistant]'
        )
        assert harness.tok_encode(text).count(chatty[0].tokenizer.bos_id) == 1
    question = [{'role': 'user', 'content': 'x?'}]
    begun = harness.apply_chat_template(
        [*question, {'role': 'assistant', 'content': 'It is'}], False
    )
    assert begun == '<s>[user]x?<|im_end|>[assistant]It is'
    assert (
        harness.chat_template(True) == chatty[0].tokenizer.tokenizer.chat_template
        and harness.chat_template() is None
    )
    with pytest.raises(UserError, match='apply_chat_template="rag"'):
        harness.chat_template('rag')
    assert (
        Harness(*chatty, chat_template_args={'opening': '<think>'})
        .apply_chat_template(question)
        .endswith('[assistant]<think>')
    )
    assert 'add_bos_token' not in caplog.text
    bare = dataclasses.replace(
        chatty[0],
        tokenizer=huggingface(None, None, path=write_folder(tmp_path / 'bare', bos='<s>')),
    )
    Harness(bare, chatty[1]).apply_chat_template(question)
    assert 'add_bos_token=False' in caplog.text
    with pytest.raises(UserError, match='tokenizer.chat_template'):
        Harness(*opened).chat_template(True)


def test_whole_evaluation(opened, tmp_path):
    """The harness's own loop over two tasks gives the numbers we count ourselves."""
    tokenizer, choices = opened[0].tokenizer, ['46', '#11$', '9']
    best = [
        int(
            np.argmax(
                [expected(opened, tokenizer.encode(p), tokenizer.encode(c))[0] for c in choices]
            )
        )
        for p in PROMPTS
    ]
    rows = [
        {'prompt': p, 'choices': choices, 'label': (b + (i % 3 == 0)) % 3}
        for i, (p, b) in enumerate(zip(PROMPTS, best))
    ]
    write_task(
        tmp_path,
        'choice',
        rows,
        output_type='multiple_choice',
        doc_to_text='{{prompt}}',
        doc_to_choice='{{choices}}',
        doc_to_target='label',
        target_delimiter='',
        metric_list=[{'metric': 'acc'}],
    )
    sampling = Sampling(max_tokens=8, temperature=0.0, eos_ids=tokenizer.eos_ids)
    digits = [
        ''.join(filter(str.isdigit, c[0]['text']))
        for _, c in sample(*opened, PROMPTS, sampling, 0, 8)
    ]
    assert sum(map(bool, digits)) > 3
    rows = [
        {'prompt': p, 'target': d[0] if d and i % 2 else 'no'}
        for i, (p, d) in enumerate(zip(PROMPTS, digits))
    ]
    pattern = [{'function': 'regex', 'regex_pattern': '([0-9])'}, {'function': 'take_first'}]
    write_task(
        tmp_path,
        'say',
        rows,
        output_type='generate_until',
        doc_to_text='{{prompt}}',
        doc_to_target='target',
        generation_kwargs={'until': [], 'max_gen_toks': 8, 'do_sample': False},
        metric_list=[{'metric': 'exact_match'}],
        filter_list=[{'name': 'first', 'filter': pattern}],
    )
    results = evaluate(Harness(*opened, batch_size=4), tmp_path, 'choice', 'say')
    assert results['results']['choice']['acc,none'] == pytest.approx(4 / 7)
    right = sum(map(bool, digits[1::2]))
    assert results['results']['say']['exact_match,first'] == pytest.approx(right / 7) and right
    assert results['config']['workdir'] == str(opened[0].workdir) and not any(
        results['config']['truncated'].values()
    )


def test_numbers_are_those_of_the_torch_adapter(tmp_path):
    """The harness's own adapter on the same weights: log-probs, windows, cuts and answers, without
    BOS (which it puts twice in windows)."""
    torch, transformers, adapter = map(
        pytest.importorskip, ('torch', 'transformers', 'lm_eval.models.huggingface')
    )
    write_folder(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    ).eval()
    for weight in model.parameters():
        weight.detach().normal_(0, 0.25)
    model.save_pretrained(tmp_path)
    config = small_runs.quiet(
        'configs/sft.py',
        tokenizer__name='huggingface',
        tokenizer__path=tmp_path,
        tokenizer__mask='',
    )
    folder, of_run = (
        pretrained.read_folder(tmp_path),
        open_run(config, tmp_path / 'run', active=False),
    )
    # Their softmax has PAD in it.
    shape = model_config.from_config(folder.fields, vocab_size=len(tokenizer), pad_id=-1)
    of_run = dataclasses.replace(of_run, model=shape, specs=spec.specs(shape))
    ours = Harness(of_run, pretrained.load(folder, shape, of_run.mesh), max_length=24)
    theirs = adapter.HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend='causal',
        batch_size=4,
        max_length=24,
        device='cpu',
    )

    texts = [
        'Tom',
        'How many does he have?',
        'Tom has 12 apples and buys 345 more.\n' * 2,
        'She ran  two   miles: 1/2 + 3/4 = 5/4.' * 3,
    ]
    asked = [
        (a, b)
        for a in (*texts[:3], '', 'Tom has ', 'a\n\n')
        for b in (' 357', 'he has', ' $1,024.50', '   miles')
    ]
    for kind, arguments in (
        ('loglikelihood', asked),
        ('loglikelihood_rolling', [(text,) for text in texts]),
    ):
        got, wanted = (
            np.array(getattr(lm, kind)(requests(kind, *arguments), disable_tqdm=True))
            for lm in (ours, theirs)
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=2e-5)
    assert ours.truncated['loglikelihood'] == 4
    for settings in (
        {'until': ['\n', ' a'], 'max_gen_toks': 10, 'do_sample': False},
        {'until': [' 1', 'e'], 'max_gen_toks': 12},
    ):
        got, wanted = (
            lm.generate_until(requests('generate_until', *((t, dict(settings)) for t in texts)))
            for lm in (ours, theirs)
        )
        assert got == wanted and len(set(got)) == len(texts)
    messages = [{'role': 'user', 'content': 'Tom?'}, {'role': 'assistant', 'content': ' It is '}]
    assert all(
        ours.apply_chat_template(messages, more) == theirs.apply_chat_template(messages, more)
        for more in (True, False)
    )


def program(capsys, monkeypatch, *arguments):
    """`python -m reasonjax.interop.lm_eval ARGUMENTS`: (status, standard output, standard
    error)."""
    monkeypatch.setattr(sys, 'argv', ['harness', *map(str, arguments)])
    # Reading the harness's own 221 folders of tasks takes seconds.
    monkeypatch.setattr(
        lm_eval.tasks, 'TaskManager', functools.partial(TaskManager, include_defaults=False)
    )
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module('reasonjax.interop.lm_eval', run_name='__main__')
    return leaving.value.code, *capsys.readouterr()


def perplexity(workdir, stage):
    of_run, params = trained(workdir, stage)
    return np.exp(
        -expected(
            (of_run, params), [of_run.tokenizer.eos_ids[0]], of_run.tokenizer.encode('12+34=')
        )[0]
        / 6
    )


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
def test_the_program(workdir, tmp_path, capsys, monkeypatch):
    """The command line of lm_eval with a run as its model."""
    write_task(
        tmp_path,
        'roll',
        [{'text': '12+34='}],
        output_type='loglikelihood_rolling',
        doc_to_text='',
        doc_to_target='{{text}}',
        metric_list=[{'metric': 'byte_perplexity'}],
    )
    run = [
        '--skip_selfcheck',
        '--tasks',
        'roll',
        '--include_path',
        tmp_path,
        '--output_path',
        tmp_path / 'out',
        '--model_args',
    ]
    status, printed, errors = program(
        capsys, monkeypatch, *run, f'workdir={workdir},stage=pretrain'
    )
    assert status == 0 and 'byte_perplexity' in printed and 'reasonjax' in printed, errors
    (written,) = tmp_path.glob('out/*/results_*.json')
    results = json.loads(written.read_text())
    assert results['results']['roll']['byte_perplexity,none'] == pytest.approx(
        perplexity(workdir, 'pretrain'), rel=1e-5
    )
    assert (
        results['config']['stage'],
        results['config']['step'],
        results['config']['batch_size'],
    ) == ('pretrain', 2, '32')
    status, printed, errors = program(capsys, monkeypatch, *run, f'workdir={tmp_path}')
    assert (
        status == 2 and errors.splitlines()[-1].startswith('error: ') and 'holds no run' in errors
    )
    status, _, errors = program(
        capsys,
        monkeypatch,
        '--skip_selfcheck',
        '--tasks',
        'no_such_task',
        '--model_args',
        f'workdir={workdir}',
    )
    assert status == 2 and errors.splitlines()[-1].startswith(
        'error: --tasks: Tasks not found: no_such_task.'
    )


def test_a_stage_and_its_adapter(workdir, tmp_path):
    """The last stage by default; its low-rank pairs are part of the model, and counted."""
    last = Harness.create_from_arg_string(
        f'workdir={workdir},max_length=32', {'batch_size': 4, 'device': 'cuda:0'}
    )
    first = Harness.from_workdir(workdir, stage='pretrain')
    assert last.batch_size == 4 and last.max_length == 32 and first.batch_size == 32
    info, less = last.get_model_info(), first.get_model_info()
    assert info['stage'] == 'lora' and info['step'] == 2
    assert (
        info['model_num_parameters']
        == sum(x.size for x in jax.tree.leaves(trained(workdir)[1]))
        > less['model_num_parameters']
    )
    for harness, stage in ((last, 'lora'), (first, 'pretrain')):
        (total,) = harness.loglikelihood_rolling(requests('loglikelihood_rolling', ('12+34=',)))
        assert np.exp(-total / 6) == pytest.approx(perplexity(workdir, stage), rel=1e-5)


def test_bad_model_arguments(workdir):
    for arguments, message in [
        ('workdir={0},stag=sft', 'no argument "stag". Did you mean "stage"?'),
        ('workdir={0},batch_size=auto', 'batch_size="auto": must be a whole number'),
        ('workdir={0},max_gen_toks=0', 'max_gen_toks=0'),
        ('workdir={0},seed=-1', 'seed=-1: must be from 0 to 4294967295; nearest: 0'),
        ('stage=lora', 'needs workdir=FOLDER'),
    ]:
        with pytest.raises(UserError) as error:
            Harness.create_from_arg_string(arguments.format(workdir))
        assert message in str(error.value)


@pytest.mark.filterwarnings('ignore:.*found in sys.modules')
def test_help_and_what_is_not_installed(capsys, monkeypatch):
    status, printed, _ = program(capsys, monkeypatch, '--help')
    assert not status and '--model_args workdir=' in printed and '--skip_selfcheck' in printed
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.setattr(sys, 'argv', ['harness', '--tasks', 'gsm8k'])
    with pytest.raises(SystemExit, match='2'):
        runpy.run_module('reasonjax.interop.lm_eval', run_name='__main__')
    assert 'error: ' in (errors := capsys.readouterr().err) and 'reasonjax[eval]' in errors
    with pytest.raises(UserError, match=r'reasonjax\[eval\]'):
        runpy.run_module('reasonjax.interop.lm_eval.model')
