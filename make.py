"""Two commands, each of which sets up its own environment first (all they need is Python 3.11):

    python3 make.py figures       Figures 6-8 and Table 1 on the built-in simulated scene,
                                  in runs/figures/twin-demo; about 10 minutes on 2 cores
    python3 make.py test          the tests: nbdev_test and pytest; about 5 minutes on 2 cores
    python3 make.py test --all    these and the slow ones (killed and shared runs, the whole
                                  paper twice at the smallest size)

Further arguments go to papermill (`python3 make.py figures -p profile smoke`) or to pytest
(`python3 make.py test -k pairs`). Others:

    python3 make.py lab           the notebooks in JupyterLab, beginning with the index
    python3 make.py docs          notebooks and reference as a site, in _docs/site
    python3 make.py publish       copy the finished set runs/figures/twin-demo into figures/,
                                  which maintainers do; other sets are named after the command
    python3 make.py setup         the environment and nothing else
"""
import hashlib, os, subprocess, sys, tempfile, venv
from pathlib import Path

root = Path(__file__).resolve().parent
env = root/'.venv'
bin = env/('Scripts' if os.name=='nt' else 'bin')

def run(*cmd, timeout=None, **extra):
    "Run a command of the environment; stop with its exit status where it fails or takes too long"
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    words = [str(bin/cmd[0]), *cmd[1:]]
    variables = os.environ | dict(PATH=path) | extra
    try: done = subprocess.run(words, cwd=root, env=variables, timeout=timeout)
    except subprocess.TimeoutExpired:
        sys.exit(f'{cmd[0]} did not end within {timeout//60} minutes')
    if done.returncode: sys.exit(done.returncode)

def wanted():
    "A hash of the files that say what belongs in the environment"
    files = ('settings.ini', 'constraints.txt', 'setup.py')
    return hashlib.sha256(b''.join((root/f).read_bytes() for f in files)).hexdigest()

def setup():
    "Make the environment, once; again when a file that says what belongs in it changes"
    mark = env/'.ready'
    if mark.exists() and mark.read_text()==wanted(): return
    print('setting up .venv: a few minutes, and a download of what is not at hand ...', flush=True)
    venv.create(env, with_pip=True, clear=True)
    run('python', '-m', 'pip', 'install', '-q', '-c', 'constraints.txt', '-e', '.[dev]')
    mark.write_text(wanted())

# papermill, whose own frames tell a reader nothing about an error in a notebook
papermill = 'import sys; sys.tracebacklimit = 0; from papermill.__main__ import papermill as p; p()'

def figures(*args):
    "The paper's notebook; its output is passed on as it comes"
    (root/'runs').mkdir(exist_ok=True)
    quiet = ('--no-progress-bar', '--log-level', 'ERROR', '--stdout-file', '-')
    books = ('nbs/06_paper.ipynb', 'runs/06_paper.ipynb')
    run('python', '-c', papermill, *books, *quiet, *args, CROPNB_PROGRESS='lines')

def publish(*sets):
    "Copy finished sets of figures into `figures/`"
    run('python', '-m', 'cropnb.measure.folders', *sets)

def docs(*args):
    "The site: open _docs/site/index.html"
    run('python', 'docs/build.py', *args)

def test(*args):
    "In a fresh folder of runs, which nbdev_test and pytest share; two at a time, on a core each"
    chosen = () if '--all' in args else ('-m', 'not slow')
    given = [a for a in args if a!='--all']
    two_at_a_time = ('-n', '2', '--dist', 'loadgroup')
    with tempfile.TemporaryDirectory() as runs:
        variables = dict(CROPNB_RUNS=runs, OMP_NUM_THREADS='1')
        run('nbdev_test', '--n_workers', '2', timeout=900, **variables)
        run('python', '-m', 'pytest', '-q', *two_at_a_time, *chosen, *given, **variables)

def lab(*args): run('jupyter', 'lab', 'nbs/index.ipynb', *args)

def main(command=None, *args):
    "Set up, then do it; without a known command, say which there are"
    commands = dict(figures=figures, test=test, lab=lab, docs=docs, publish=publish)
    commands['setup'] = lambda: None
    if sys.version_info<(3, 11):
        sys.exit(f'cropnb needs Python 3.11 or later, this is {sys.version.split()[0]}')
    if command not in commands: sys.exit(__doc__)
    setup()
    commands[command](*args)

if __name__=='__main__': main(*sys.argv[1:])
