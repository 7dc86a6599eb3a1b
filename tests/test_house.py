"Rules of the house that ruff cannot see: names, sizes of notebooks, imports"
import ast, importlib, json, re, subprocess, sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
import pytest
from conftest import root

largest_notebook = 700_000   # bytes
longest_line = 100           # characters

# These train on a bare node, which has torch, numpy, h5py and safetensors alone
light = ('views', 'encoders', 'encoder', 'controls', 'methods.base', 'methods.table',
         'methods.contrast', 'methods.decorrelate', 'methods.vicreg', 'methods.moco',
         'methods.metric', 'methods.cluster', 'methods.distil', 'methods.rebuild',
         'methods.time', 'methods.seasons', 'seasons', 'losses', 'pretrain', 'features',
         'base_models', 'downstream')
heavy = ('fastcore', 'optuna', 'papermill', 'rasterio', 'pandas', 'geopandas', 'matplotlib',
         'scipy', 'sklearn', 'tqdm', 'IPython', 'nbdev')

def hidden(path): return any(part[0] in '_.' for part in path.relative_to(root).parts)
def stem(path): return path.stem

notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if not hidden(p))

# ---------------------------------------------------------------- notebooks
@pytest.mark.parametrize('path', notebooks, ids=stem)
def test_a_notebook_is_not_too_large(path):
    size = path.stat().st_size
    assert size<=largest_notebook, f'{size/1000:.0f} kB: draw less, or coarser'

def is_exported(cell):
    return cell['cell_type']=='code' and re.search(r'^#\|\s*export', ''.join(cell['source']), re.M)

def exported_lines(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [line.rstrip('\n') for c in cells if is_exported(c) for line in c['source']]

@pytest.mark.parametrize('path', notebooks, ids=stem)
def test_exported_lines_are_short(path):
    long = [line for line in exported_lines(path) if len(line)>longest_line]
    if long: pytest.fail(f'{len(long)} lines above {longest_line} characters, such as {long[0]}')

# ---------------------------------------------------------------- modules
def module_name(path):
    "cropnb/twin/scene.py -> cropnb.twin.scene, cropnb/twin/__init__.py -> cropnb.twin"
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1]=='__init__' else parts)

def sources():
    "Name and path of every module"
    return {module_name(p): p for p in (root/'cropnb').rglob('*.py') if p.stem!='_modidx'}

def parse(path): return ast.parse(path.read_text(encoding='utf-8'))

def assigned(statement):
    "Names that an assignment gives a value"
    targets = getattr(statement, 'targets', None) or [statement.target]
    nodes = [n for target in targets for n in ast.walk(target)]
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]

def defined(tree):
    "Public functions, classes and constants of a module"
    names = set()
    for s in tree.body:
        if isinstance(s, (ast.FunctionDef, ast.ClassDef)): names.add(s.name)
        if isinstance(s, (ast.Assign, ast.AnnAssign)): names.update(assigned(s))
    return {name for name in names if not name.startswith('_')}

def test_a_public_name_is_defined_once():
    where = defaultdict(list)
    for module,path in sources().items():
        for name in defined(parse(path)): where[name].append(module)
    twice = {name: sorted(modules) for name,modules in sorted(where.items()) if len(modules)>1}
    lines = [f"{name}: {', '.join(modules)}" for name,modules in twice.items()]
    if twice: pytest.fail(f'{len(twice)} public names have two meanings:\n'+'\n'.join(lines))

# ---------------------------------------------------------------- imports
def statements(tree, deep):
    "All nodes; without `deep`, those that run when the module is imported"
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if deep or not isinstance(node, functions): waiting.extend(ast.iter_child_nodes(node))

def package_of(module, path):
    "Where a relative import of this module begins"
    return module if path.stem=='__init__' else module.rpartition('.')[0]

def origin(node, package):
    "Module of a `from` import, in full"
    dots = '.'*node.level
    return resolve_name(dots+(node.module or ''), package) if dots else node.module

def names_module(node):
    "Is this `import_module('...')`?"
    if not (isinstance(node, ast.Call) and node.args): return False
    function = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    return function=='import_module' and isinstance(node.args[0], ast.Constant)

def targets(node, package):
    "Modules, or names in modules, that a node imports"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if names_module(node): return [node.args[0].value]
    if not isinstance(node, ast.ImportFrom): return []
    start = origin(node, package)
    return [start]+[f'{start}.{a.name}' for a in node.names]

def graph_of_imports(deep):
    "Each module of ours, and those of ours that it imports"
    paths = sources()
    graph = {}
    for module,path in paths.items():
        package = package_of(module, path)
        found = {t for node in statements(parse(path), deep) for t in targets(node, package)}
        graph[module] = found & paths.keys() - {module}
    return graph

@pytest.mark.parametrize('deep', [False, True], ids=['modules', 'functions'])
def test_no_circle_of_imports(deep):
    "Imports inside functions count too: two modules that know each other are one module"
    try: TopologicalSorter(graph_of_imports(deep)).prepare()
    except CycleError as e: pytest.fail(' imports '.join(reversed(e.args[1])))

# ---------------------------------------------------------------- old rooms
# Kept for users, with all of their names but `losses.losses`, whose place `methods` has
facades = dict(
    core = '''profiles protocols repo_root runs_dir check_params in_test recipe pick derive digest
        code_of fingerprint commit host write_text write_json locked full_name Run run_id result
        idle records progress Folder resolve data_name pick_device''',
    losses = 'nt_xent dcl clip barlow_twins corrupt')

@pytest.mark.parametrize('name', facades)
def test_old_names_are_those_of_the_new_rooms(name):
    facade = importlib.import_module(f'cropnb.{name}')
    for each in facades[name].split():
        at = getattr(facade, each)
        home = getattr(at, '__module__', None)
        assert home!=facade.__name__
        if home: assert getattr(sys.modules[home], each) is at

def test_only_users_import_the_old_rooms():
    old = {f'cropnb.{name}' for name in facades}
    graph = graph_of_imports(deep=True)
    assert [module for module,found in graph.items() if found & old]==[]
    files = [*(root/'tests').glob('*.py'), *(root/'benchmarks').glob('*.py')]
    files += [p for p in notebooks if p.stem not in ('11_core', '12_losses')]
    either = '|'.join(facades)
    named = re.compile(rf'(from|import) cropnb(\.| import )({either})\b')
    assert [f.name for f in files if named.search(f.read_text(encoding='utf-8'))]==[]

# ---------------------------------------------------------------- a bare node
without = f'''
import importlib, sys
class Deny:
    "A finder that knows no heavy module"
    def find_spec(self, name, *args):
        if name.split('.')[0] in {heavy}: raise ImportError(f'{{name}} is not on a bare node')
sys.meta_path.insert(0, Deny())
'''

def test_light_imports():
    "And the shared sets of hyper-parameters are available there"
    imports = '\n'.join(f'import cropnb.{name}' for name in light)
    use = "cropnb.downstream.sets('paper', 'lstm', 10)"
    code = '\n'.join([without, imports, use])
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-1000:]
