"What a run is named by: recipe, inputs and code - and what may change without renaming it"
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from conftest import root
from test_house import graph_of_imports
from cropnb.controls import raw, untrained
from cropnb.data import series, split
from cropnb.downstream import training
from cropnb.engine.names import closure, digest, left_out, parts, skeleton
from cropnb.engine.recipes import absent
from cropnb.engine.records import Run
from cropnb.features import features
from cropnb.methods.table import find_method, methods
from cropnb.pretrain import at_step, encoder
from cropnb.probing import probing

# ---------------------------------------------------------------- code, asked of a copy
@pytest.fixture(scope='module')
def runs(smoke):
    "One run of every kind, by name; none of them is made"
    r, data, pairs = smoke.recipe, smoke.data, smoke.pairs
    judged = encoder(pairs, r, 0, judge=[1])
    own = dict(scene=data, split=split(data, 'train', r, 0), pairs=pairs)
    own |= {f'series {task}': series(task, data, r, 0) for task in (1, 2, 3)}
    own |= dict(raw=raw(pairs), untrained=untrained(pairs, r, 0), step=at_step(judged, 1))
    for method in methods:
        for mode in find_method(method).modes:
            own[f'encoder {method} {mode}'] = encoder(pairs, r|dict(method=method), 0, mode)
    task = own['series 1']
    own['features'] = features(task, judged)
    own['training'] = training(task, judged, 1, 'lstm', 0, r, 0)
    own['probe'] = probing(task, judged, 1, 'ridge', r, 0)
    return own

asker = '''
import functools, json, sys
sys.path.insert(0, sys.argv[1])
from cropnb.engine import names
names.skeleton = functools.cache(names.skeleton)   # many closures hold the same modules

def stand_in(module):
    "A function of a module, which is not imported"
    def f(): pass
    f.__module__ = module
    return f

def code(modules):
    first,*replaced = map(stand_in, modules)
    return names.code_of(functools.partial(first, **dict(zip('abcd', replaced))))

asked = json.load(sys.stdin)
print(json.dumps({name: code(modules) for name,modules in asked.items()}))
'''

def plain_env():
    "Without the paths that name this checkout"
    return {k: v for k,v in os.environ.items() if k!='PYTHONPATH'}

class Copy:
    "The package's source elsewhere; `codes` asks it, in a process of its own"
    def __init__(self, folder, runs):
        self.folder = folder
        self.asked = {k: [part.__module__ for part in parts(run.make)] for k,run in runs.items()}
        self.asked |= dict(adopted=['cropnb.prepare.published'], study=['cropnb.studies.tasks'])
        for path in (root/'cropnb').rglob('*.py'):
            to = folder/path.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)

    def edit(self, file, change):
        path = self.folder/'cropnb'/file
        old = path.read_text(encoding='utf-8')
        new = change(old)
        assert new!=old
        path.write_text(new, encoding='utf-8')

    def codes(self):
        cmd = [sys.executable, '-c', asker, str(self.folder)]
        told = subprocess.run(cmd, input=json.dumps(self.asked), env=plain_env(), cwd=self.folder,
                              capture_output=True, text=True)
        assert told.returncode==0, told.stderr[-2000:]
        return json.loads(told.stdout)

@pytest.fixture
def copy(tmp_path, runs): return Copy(tmp_path, runs)

@pytest.fixture(scope='module')
def codes(tmp_path_factory, runs):
    "Of the source as it is"
    return Copy(tmp_path_factory.mktemp('copy'), runs).codes()

@pytest.fixture
def renamed(copy, codes):
    "Called with a file of the package and a change of its text: what gets another code"
    def by(file, change):
        copy.edit(file, change)
        return {name for name,code in copy.codes().items() if code!=codes[name]}
    return by

def add(text): return lambda source: source+text
def replace(old, new): return lambda source: source.replace(old, new, 1)

def test_a_copy_names_as_the_package_does(codes, runs):
    for name,run in runs.items(): assert codes[name]==run.what['code'], name

def encoders_of(codes): return {name for name in codes if name.startswith('encoder ')}

def test_a_reader_of_brittany_is_task_3_alone(renamed):
    "No encoder, no pairs, neither of the other tasks; but a study that makes parcels"
    assert renamed('sources/breizhcrops.py', add('\nextra = 1\n'))=={'series 3', 'study'}

def test_a_new_method_renames_nothing(copy, codes):
    new = 'from .base import Method\nclass New(Method): pass\n'
    (copy.folder/'cropnb/methods/new.py').write_text(new)
    line = "methods = dict(\n    new = 'cropnb.methods.new.New',"
    copy.edit('methods/table.py', replace('methods = dict(', line))
    copy.asked['new'] = ['cropnb.pretrain', 'cropnb.methods.new', 'cropnb.views']
    new = copy.codes()
    assert new.pop('new') not in codes.values()
    assert new==codes

def test_a_method_is_in_the_code_of_its_encoders(renamed):
    found = renamed('methods/decorrelate.py', add('\nextra = 1\n'))
    assert found=={f'encoder barlow_twins {mode}' for mode in find_method('barlow_twins').modes}

def test_views_are_in_the_code_of_encoders_and_controls(renamed, codes):
    found = renamed('views.py', add('\nextra = 1\n'))
    assert found-{'study'}=={*encoders_of(codes), 'raw', 'untrained', 'step'}

def test_seeds_are_in_every_code(renamed, codes):
    "`derive` draws them all"
    assert renamed('engine/seeds.py', replace('>> 1', '>> 2'))==set(codes)

def test_what_keeps_or_draws_results_renames_nothing(copy, codes):
    for file in ('engine/records', 'engine/workers', 'engine/recipes', 'evaluate', 'paper', 'cli'):
        copy.edit(f'{file}.py', add('\nextra = 1\n'))
    assert copy.codes()==codes

said = '''
def said(n):
    "What it does{text}"
    {comment}
    print('n', f'is {{n}}{text}', 'or' 'not{text}')
    if n: raise ValueError(f'n={{n}}{text} is '
                           f'wrong{text}', 'n{text}')
    return n{code}
'''
def with_said(**texts):
    given = dict(text='', comment='', code='')|texts
    return add(said.format(**given))

def test_texts_rename_nothing(copy):
    "Docstrings, comments, and what an error or a line of progress says; a number does"
    views = copy.folder/'cropnb/views.py'
    plain = views.read_text()
    def codes(**texts):
        views.write_text(with_said(**texts)(plain))
        return copy.codes()
    old = codes()
    assert codes(text=', in more words: é', comment='# a comment\n\n')==old
    assert codes(code='+1')!=old

# ---------------------------------------------------------------- closures
def reached(graph, module):
    "All that a module imports, directly or not, short of what is left out"
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in left_out: continue
        found.add(name)
        waiting += graph[name]
    return found

def is_package(module): return (root/module.replace('.', '/')).is_dir()

def test_a_closure_is_all_that_a_module_imports(runs):
    "Found in another way, for every module that makes runs"
    graph = graph_of_imports(deep=True)
    modules = {part.__module__ for run in runs.values() for part in parts(run.make)}
    for module in sorted(modules | {'cropnb.studies.tasks'}):
        want = {name for name in reached(graph, module) if not is_package(name)}
        assert closure(module).keys()==want, module

def test_a_study_is_named_by_what_it_is_made_with():
    found = closure('cropnb.studies.tasks').keys()
    assert {'cropnb.prepare.parcels', 'cropnb.sources.breizhcrops', 'cropnb.twin.scene'}<=found
    assert {'cropnb.studies.audit', 'cropnb.studies.crowd'} & found

# ---------------------------------------------------------------- recipes
def make_nothing(folder, recipe): return {}
def name_of(**recipe): return Run('x', dict(a=1)|recipe, make_nothing).id

@pytest.mark.parametrize('key', absent)
def test_a_key_at_the_value_of_its_absence(key):
    assert name_of(**{key: absent[key]})==name_of()
    assert name_of(**{key: 'another'})!=name_of()

later = '''options judge keep_model frozen fields position pairing dropout precision optimizer
    stratify block buffer clouds max_days bands sensor sees like second backbone'''.split()

def test_runs_were_named_alike_before_a_key_existed(runs):
    "With the default recipe these keys are as if they were not there; a scene has keys of its own"
    assert set(later)==absent.keys()
    for name,run in runs.items():
        if name=='scene': continue
        before = {k: v for k,v in run.recipe.items() if k not in later}
        assert Run(run.stage, before, run.make, **run.inputs).id==run.id, name

# ---------------------------------------------------------------- other Pythons
hasher = '''
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from cropnb.engine.names import digest, skeleton
files = map(Path, sys.argv[2:])
print(json.dumps({str(f): digest(skeleton(f.read_text(encoding='utf-8'))) for f in files}))
'''

awkward = r'''
"""Module
docstring: {é}"""
import math
width = 3
a = f'{width:>{width}} {width!r:^{width*2}} {{}} {"x" + "y"}'
b = f"""é {width
} {{ {math.pi:.{width}f} """ 'and' f"{width=}"
c = rf'\d{width}' + b'\x00'.decode()
def f(x, *, y: 'str' = f'{width}') -> 'str':
    'one' 'two'
    print(f'é {x} {f"{x}"}', x, sep=f'{x}')
    if x: raise ValueError(f"é {x}" 'b' f'{y}') from None
    elif (n := len(y)) > 3: return \
        f'{n}'
    return f'{x:{"<" if y else ">"}{width}}'
class C:
    """"""
    async def g(self): "only a docstring"
'''

def answers(python):
    "Does it start? A shim of pyenv is there and may have nothing behind it"
    try: return subprocess.run([python, '-c', ''], capture_output=True).returncode==0
    except OSError: return False

def interpreter(version):
    "Of pyenv or of the path, or `None`"
    home = Path(os.environ.get('PYENV_ROOT') or Path.home()/'.pyenv')
    own = sorted(home.glob(f'versions/{version}.*/bin/python'))
    found = [*map(str, reversed(own)), shutil.which(f'python{version}')]
    return next((python for python in found if python and answers(python)), None)

@pytest.mark.parametrize('version', ['3.11', '3.12', '3.13'])
def test_hashes_agree_between_pythons(version, tmp_path):
    "Of all files of the package and of awkward texts; `engine.names` needs no other package"
    python = interpreter(version)
    if not python: pytest.skip(f'Python {version} is not available here')
    (tmp_path/'awkward.py').write_text(awkward, encoding='utf-8')
    files = [*sorted((root/'cropnb').rglob('*.py')), tmp_path/'awkward.py']
    cmd = [python, '-I', '-c', hasher, str(root), *map(str, files)]
    told = subprocess.run(cmd, capture_output=True, text=True, env=plain_env())
    assert told.returncode==0, told.stderr[-2000:]
    want = {str(f): digest(skeleton(f.read_text(encoding='utf-8'))) for f in files}
    assert json.loads(told.stdout)==want
