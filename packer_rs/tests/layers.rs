//! The wall between the rooms. In: the sources of the engine. Out: nothing, or each arrow that goes up a floor, each
//! circle of files, and each word of Python outside `py/`.
//!
//! An arrow is a path through modules (`use crate::fetch::Source`, `super::open::io_reason`). A `pub use` of a `mod.rs`
//! only shows what the room has, and is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms by floors, from the ground up; a room knows those on floors below its own.
const FLOORS: [&[&str]; 4] =
    [&["columns", "error", "failure", "slots", "sync"], &["fetch", "pixels", "plan"], &["probe", "render"], &["py"]];

/// What a folder may know of the engine, where that is less than its floor allows: packing knows nothing of images.
const LESS: [(&str, &[&str]); 1] = [("plan::pack", &["error", "plan"])];

const PYTHON: [&str; 2] = ["pyo3", "numpy"];

/// Sources by module (`fetch::window`; `fetch` is its mod.rs).
type Sources = BTreeMap<String, String>;

fn read(folder: &Path, module: &str, into: &mut Sources) {
    for entry in fs::read_dir(folder).expect("the sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|n| n.to_str()).expect("a name").to_owned();
        let inner = if module.is_empty() { name.clone() } else { format!("{module}::{name}") };
        if path.is_dir() {
            read(&path, &inner, into);
        } else if name != "lib" {
            into.insert(
                if name == "mod" { module.to_owned() } else { inner },
                fs::read_to_string(&path).expect("text"),
            );
        }
    }
}

fn engine() -> Sources {
    let mut sources = Sources::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    sources
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// The paths in a line of code that start with `start`, as what follows it.
fn paths<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = String> + 'a {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.match_indices(start).filter(move |&(at, _)| !code[..at].ends_with(|c| word(c) || c == ':')).map(
        move |(at, _)| {
            let rest = &code[at + start.len()..];
            rest[..rest.find(|c| !word(c) && c != ':').unwrap_or(rest.len())].to_owned()
        },
    )
}

/// The modules that a source names.
fn arrows(module: &str, source: &str, all: &Sources) -> BTreeSet<String> {
    let door = all.keys().any(|other| parent(other) == module);
    let mut found = BTreeSet::new();
    for line in source.lines() {
        let code = line.split("//").next().unwrap_or_default();
        if door && code.starts_with("pub use ") {
            continue;
        }
        let above = if module.contains("::") { format!("{}::", parent(module)) } else { String::new() };
        let mut named: Vec<String> = paths(code, "crate::").collect();
        assert!(!named.contains(&String::new()), "{module}: one path a line, not `{}`", code.trim());
        // Inside a module of the file itself `super` is the file.
        let own = line.starts_with(' ');
        named.extend(
            paths(code, "super::").map(|path| format!("{above}{path}")).filter(|path| !own || all.contains_key(path)),
        );
        if door {
            let children = all.keys().filter(|child| parent(child) == module);
            named.extend(
                children
                    .filter(|child| {
                        let name = child.rsplit("::").next().unwrap_or_default();
                        paths(code, &format!("{name}::")).next().is_some()
                    })
                    .cloned(),
            );
        }
        for path in named {
            let mut path = path.trim_end_matches(':');
            while !path.is_empty() && !all.contains_key(path) {
                path = parent(path);
            }
            if !path.is_empty() && path != module {
                found.insert(path.to_owned());
            }
        }
    }
    found
}

/// Everything that is wrong with these sources.
fn faults(all: &Sources) -> Vec<String> {
    let floor = |module: &str| FLOORS.iter().position(|rooms| rooms.contains(&room(module)));
    let mut faults = Vec::new();
    let mut left: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (module, source) in all {
        if floor(module).is_none() {
            faults.push(format!("{module} stands on no floor; give it one in FLOORS"));
        }
        let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
        let python = code.flat_map(|code| PYTHON.iter().flat_map(move |&word| paths(code, word))).count();
        if python > 0 && room(module) != "py" {
            faults.push(format!("{module} knows Python; only py/ may"));
        }
        let arrows = arrows(module, source, all);
        for other in &arrows {
            let inside = room(module) == room(other) || floor(module) == Some(0) && floor(other) == Some(0);
            if !inside && floor(other) >= floor(module) {
                faults.push(format!("{module} → {other} goes up, or to a room beside it"));
            }
            for (folder, known) in LESS {
                let within = module == folder || parent(module) == folder;
                if within
                    && (!known.contains(&room(other)) || room(other) == room(folder) && !other.starts_with(folder))
                {
                    faults.push(format!("{module} → {other}: {folder} may know only {known:?}"));
                }
            }
        }
        left.insert(module, arrows);
    }
    // What can be taken away because nothing of it is left to wait for has no circle.
    while let Some(module) =
        left.iter().find(|(_, to)| to.iter().all(|to| !left.contains_key(to.as_str()))).map(|(m, _)| *m)
    {
        left.remove(module);
    }
    // Of the rest, those that only lead into a circle go too.
    while let Some(module) = left.keys().copied().find(|module| !left.values().any(|to| to.contains(*module))) {
        left.remove(module);
    }
    if !left.is_empty() {
        faults.push(format!("a circle among {:?}", left.keys()));
    }
    faults
}

#[test]
fn every_arrow_goes_down() {
    let all = engine();
    assert!(all.len() > 60, "{} files: are these the sources?", all.len());
    let faults = faults(&all);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_planted_arrow_is_seen() {
    for (module, line, said) in [
        ("pixels::format", "use crate::render::ledger::Ledger;", "pixels::format → render::ledger goes up"),
        (
            "fetch::window",
            "    let x = crate::probe::headers::probe_header(w);",
            "fetch::window → probe::headers goes up",
        ),
        ("plan::order", "use crate::fetch::Source;", "beside it"),
        ("columns", "use crate::plan::Plan;", "columns → plan goes up"),
        ("render::memory", "use super::engine::Renderer;", "circle"),
        ("render::job", "use crate::render::engine::Renderer;", "circle"),
        ("probe::open", "use super::headers::Header;", "circle"),
        ("plan::pack::exact", "use crate::slots::Grid;", "may know only"),
        ("plan::pack::exact", "use crate::plan::draw::Draws;", "may know only"),
        ("render::fill", "use pyo3::Python;", "render::fill knows Python"),
        ("fetch::file", "fn f(a: numpy::PyArray1<u8>) {}", "fetch::file knows Python"),
        ("stray", "", "no floor"),
    ] {
        let mut all = engine();
        let source = all.entry(module.to_owned()).or_default();
        *source = format!("{line}\n{source}");
        let faults = faults(&all);
        assert!(faults.iter().any(|fault| fault.contains(said)), "{module}: {line}: {faults:?}");
    }
}
