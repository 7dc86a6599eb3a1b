"""Two commands, each of which sets up its own environment first (Python 3.11 or later, nothing else needed):

    python3 make.py figures    Figures 6-8 and Table 1 on the built-in simulated scene, in figures/; about 10 minutes on 2 cores
    python3 make.py test       the tests: nbdev_test and pytest

Further arguments go to papermill (`python3 make.py figures -p profile smoke`) or to pytest (`python3 make.py test -k pairs`).
`python3 make.py lab` opens the notebooks in JupyterLab; `python3 make.py setup` stops after the environment.
"""
import hashlib, os, subprocess, sys, tempfile, venv
from pathlib import Path

root = Path(__file__).resolve().parent
env = root/'.venv'
bin = env/('Scripts' if os.name=='nt' else 'bin')

def run(*cmd, timeout=None, **extra):
    "Run a command of the environment from the repository's root, and stop with its exit status if it fails or takes too long"
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    try: r = subprocess.run([str(bin/cmd[0]), *cmd[1:]], cwd=root, env=os.environ | dict(PATH=path) | extra, timeout=timeout)
    except subprocess.TimeoutExpired: sys.exit(f"{cmd[0]} did not end within {timeout//60} minutes")
    if r.returncode: sys.exit(r.returncode)

def setup():
    "Make the environment, once; again when a file that says what belongs in it changes"
    mark, files = env/'.ready', ('settings.ini', 'constraints.txt', 'setup.py')
    want = hashlib.sha256(b''.join((root/f).read_bytes() for f in files)).hexdigest()
    if mark.exists() and mark.read_text()==want: return
    print('setting up .venv: a few minutes, and a download where torch is not at hand ...', flush=True)
    venv.create(env, with_pip=True, clear=True)
    run('python', '-m', 'pip', 'install', '-q', '-c', 'constraints.txt', '-e', '.[dev]')
    mark.write_text(want)

def figures(*args):
    (root/'runs').mkdir(exist_ok=True)
    run('papermill', 'nbs/06_paper.ipynb', 'runs/06_paper.ipynb', '--no-progress-bar', '--log-level', 'ERROR', '--stdout-file', '-', *args)

def test(*args):
    "In a fresh folder of runs, so that nothing is taken from an earlier one"
    with tempfile.TemporaryDirectory() as runs:
        run('nbdev_test', '--n_workers', '2', timeout=900, CROPNB_RUNS=runs)
        run('python', '-m', 'pytest', '-q', *args, CROPNB_RUNS=runs)

def lab(*args): run('jupyter', 'lab', 'nbs', *args)

if __name__=='__main__':
    cmds = dict(figures=figures, test=test, lab=lab, setup=lambda: None)
    if sys.version_info<(3, 11): sys.exit(f'cropnb needs Python 3.11 or later, this is {sys.version.split()[0]}')
    if len(sys.argv)<2 or sys.argv[1] not in cmds: sys.exit(__doc__)
    setup(); cmds[sys.argv[1]](*sys.argv[2:])
