"""All of the paper's runs on a SLURM cluster: one job a worker, one run at a time on each.

    python examples/slurm.py --profile paper --data /path/to/denethor --workers 8 --gres gpu:1

`runs/` (or `CROPNB_RUNS`) has to lie on a disk that all nodes see and that has locks. It can be
stopped and started again: what is done stays done. The figures are drawn afterwards, where you
are, by `papermill nbs/06_paper.ipynb`, which then finds nothing left to do.
"""
import argparse
from dask_jobqueue import SLURMCluster           # pip install dask-jobqueue
from cropnb.data import resolve
from cropnb.engine.recipes import recipe
from cropnb.engine.workers import work
from cropnb.paper import plan

def options():
    "What can be set; the rest is in SLURMCluster's own configuration"
    words = argparse.ArgumentParser(description='The paper on SLURM')
    add = words.add_argument
    add('--profile', default='paper', help='smoke | demo | desk | paper')
    add('--data', default='twin', help="a folder, or 'twin'")
    add('--device', default='cuda', help='cpu | cuda: of the workers')
    add('--tasks', type=int, nargs='+', default=[1, 2, 3])
    add('--families', nargs='+', default=['lstm', 'inception', 'transformer'])
    add('--workers', type=int, default=8, help='jobs')
    add('--memory', default='16GB', help='of a job')
    add('--walltime', default='24:00:00', help='of a job')
    add('--gres', default='', help='such as gpu:1')
    return words.parse_args()

def main():
    a = options()
    extra = [f'--gres={a.gres}'] if a.gres else []
    data, r = resolve(a.data, a.profile, 0), recipe(a.profile)
    stages = plan(data, r, 0, a.device, a.tasks, a.families, {})
    with SLURMCluster(cores=1, processes=1, memory=a.memory, walltime=a.walltime,
                      job_extra_directives=extra) as cluster:
        cluster.scale(jobs=a.workers)
        for jobs in stages:
            runs = [run for job in jobs for run in job.runs]
            work(runs, scheduler=cluster.scheduler_address, show=print)

if __name__=='__main__': main()
