"""The site: every notebook as a page, a reference of all public functions, and search.

    python3 make.py docs          writes _docs/site; open _docs/site/index.html

Needs mkdocs and nbconvert, from PyPI, and nothing from the network while it is built or read.
"""
import importlib, inspect, re, shutil
from html import escape
from pathlib import Path
import nbformat
from fastcore.docments import docments
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
out = root/'_docs'
pages = out/'pages'
chapters = 'the paper', 'methods', 'measure', 'prepare', 'sources', 'engine', 'twin', 'studies'

# ---------------------------------------------------------------- notebooks
def hidden(path): return any(part[0] in '_.' for part in path.relative_to(root/'nbs').parts)

notebooks = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not hidden(p)]

def title(path):
    "The first heading of a notebook"
    for cell in nbformat.read(path, 4).cells:
        found = re.search(r'^# (.+)$', cell.source, re.M)
        if cell.cell_type=='markdown' and found: return found[1].strip()
    return path.stem

def for_readers(nb):
    "Without what only nbdev reads"
    shown = [c for c in nb.cells if not c.source.startswith(('#| hide', '#| default_exp'))]
    for cell in shown:
        if cell.cell_type=='code': cell.source = re.sub(r'^#\| ?export\w*\n', '', cell.source)
    nb.cells = shown
    return nb

def link(found):
    "Pages link to pages"
    return f"]({found[1].replace('.ipynb', '.md')}{found[2]})"

def write_page(path):
    "A notebook as Markdown, its pictures beside it"
    to = (pages/path.relative_to(root/'nbs')).with_suffix('.md')
    to.parent.mkdir(parents=True, exist_ok=True)
    files = f'{to.stem}_files'
    text, found = MarkdownExporter().from_notebook_node(
        for_readers(nbformat.read(path, 4)), dict(output_files_dir=files))
    text = re.sub(r'\]\(([\w./-]+\.ipynb)(#[\w-]*)?\)', lambda m: link([0, m[1], m[2] or '']), text)
    text = re.sub(r'\]\(#[\w-]+\)', lambda m: m[0].lower(), text) # as mkdocs writes anchors
    text = text.replace('](../figures/', '](figures/')
    text = re.sub(r'<style scoped>.*?</style>\n', '', text, flags=re.S)
    to.write_text(text, encoding='utf-8')
    (to.parent/files).mkdir(exist_ok=True)
    for name,data in found['outputs'].items(): (to.parent/name).write_bytes(data)
    return to.relative_to(pages).as_posix()

# ---------------------------------------------------------------- reference
def modules():
    "Names of all modules of the package, in its order"
    for path in sorted((root/'cropnb').rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        if parts[-1][0]!='_': yield '.'.join(parts)

def annotation(o):
    "Such as int|None"
    if o is inspect.Parameter.empty: return ''
    return getattr(o, '__name__', str(o)) if isinstance(o, type) else str(o)

def code(o): return f'<code>{escape(str(o))}</code>' if str(o) else ''

def parameter_rows(o):
    "A table row a parameter: name, type, default, what it is"
    empty = inspect.Parameter.empty
    for name,about in docments(o, full=True, returns=False).items():
        if name in ('self', 'return'): continue
        default = about['default']
        default = '' if default is empty else getattr(default, '__name__', repr(default))
        says = escape((about['docment'] or '').replace('\n', ' ')).replace('|', '&#124;')
        kind = code(annotation(about['anno'])).replace('|', '&#124;')
        yield f"| `{name}` | {kind} | {code(default).replace('|', '&#124;')} | {says} |"

def returned(o):
    "What comes back"
    about = docments(o, full=True, returns=True).get('return')
    if not about or not about['docment']: return ''
    kind = code(annotation(about['anno']))
    return f"**Returns** {kind}: {escape(about['docment'])}\n"

def entry(name, o):
    "A function, a class with its methods, or a value"
    if not (inspect.isfunction(o) or inspect.isclass(o)):
        return f'## {name}\n\n{code(repr(o)[:300])}\n'
    lines = [f'## {name}\n']
    if inspect.isclass(o): lines.append('*class*\n')
    lines.append((inspect.getdoc(o) or '')+'\n')
    lines += call(o)
    if inspect.isclass(o):
        for key,method in vars(o).items():
            if key[0]=='_' or not inspect.isfunction(method): continue
            lines += [f'### {name}.{key}\n', (inspect.getdoc(method) or '')+'\n', *call(method)]
    return '\n'.join(lines)

def call(o):
    "Parameters and what is returned"
    try: rows = list(parameter_rows(o))
    except Exception: return []                  # a class without an `__init__` of its own
    table = ['| parameter | type | default | what it is |', '|---|---|---|---|', *rows, '']
    result = '' if inspect.isclass(o) else returned(o)
    return [*(table if rows else []), result]

def write_reference(name):
    "A page for a module; none where nothing is public"
    module = importlib.import_module(name)
    public = getattr(module, '__all__', [])
    if not public: return
    to = pages/'reference'/f'{name}.md'
    to.parent.mkdir(parents=True, exist_ok=True)
    entries = [entry(key, getattr(module, key)) for key in public]
    head = f"# {name}\n\n{inspect.getdoc(module) or ''}\n"
    to.write_text('\n'.join([head, *entries]), encoding='utf-8')
    return {name: to.relative_to(pages).as_posix()}

# ---------------------------------------------------------------- all of it
def navigation():
    "Where each page goes"
    rooms = {room: [] for room in chapters}
    for path in notebooks:
        folder = path.relative_to(root/'nbs').parent.as_posix()
        page = {title(path): write_page(path)}
        room = 'the paper' if folder=='.' else folder
        if path.stem!='index': rooms.setdefault(room, []).append(page)
    reference = [page for page in map(write_reference, modules()) if page]
    nav = [{'Home': 'index.md'}, *({k: v} for k,v in rooms.items() if v), {'Reference': reference}]
    return nav

def main():
    shutil.rmtree(out, ignore_errors=True)
    pages.mkdir(parents=True)
    nav = navigation()
    shutil.copyfile(root/'docs/extra.css', pages/'extra.css')
    (pages/'figures').mkdir()
    shutil.copyfile(root/'figures/first.png', pages/'figures/first.png')
    config = load_config(
        config_file=str(root/'docs/mkdocs.yml'), docs_dir=str(pages), site_dir=str(out/'site'),
        nav=nav)
    build(config)
    n = len(nav[-1]['Reference'])
    print(f'{len(notebooks)} notebooks, {n} modules: {out}/site/index.html')

if __name__=='__main__': main()
