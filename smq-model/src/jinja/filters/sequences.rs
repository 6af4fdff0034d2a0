//! Filters of lists and dicts.

use std::rc::Rc;

use super::super::args::{self, Args};
use super::super::error::{Fault, Result};
use super::super::heap::Items;
use super::super::interp::Interp;
use super::super::limits;
use super::super::ops;
use super::super::value::{Tuple, Value, hashable};
use super::{attribute, ignore_case, sorted};

pub(super) fn apply(interp: &mut Interp, name: &str, value: Value, args: Args) -> Result<Value> {
    match name {
        "batch" | "slice" => parts(name, &value, args),
        "dictsort" => dict_sort(&value, args),
        "first" => {
            args.none(name)?;
            let first = match &value {
                Value::Iter(items) => items.borrow_mut().pop_front(),
                other => other.iterate()?.into_iter().next(),
            };
            let none = || Value::undefined("No first item, sequence was empty.");
            Ok(first.unwrap_or_else(none))
        }
        "last" => {
            args.none(name)?;
            if let Value::Iter(_) = value {
                return Err(Fault::new("'generator' object is not reversible"));
            }
            let none = || Value::undefined("No last item, sequence was empty.");
            Ok(value.iterate()?.pop().unwrap_or_else(none))
        }
        "groupby" => group_by(interp, &value, args),
        "items" => {
            args.none(name)?;
            match &value {
                Value::Undefined(_) => Ok(Value::generator([])),
                Value::Dict(dict) => Ok(Value::generator(dict.pairs())),
                _ => Err(Fault::new("Can only get item pairs from a mapping.")),
            }
        }
        "list" => args
            .none(name)
            .and_then(|()| Ok(Value::list(value.iterate()?))),
        "max" | "min" => extreme(interp, name, &value, args),
        "reverse" => {
            args.none(name)?;
            if let Value::Str(text) = &value {
                return Ok(Value::str(text.text.chars().rev().collect::<String>()));
            }
            let unordered = |_| Fault::new("argument must be iterable");
            let mut items = value.iterate().map_err(unordered)?;
            items.reverse();
            Ok(match value {
                Value::Iter(_) => Value::list(items),
                _ => Value::generator(items),
            })
        }
        "sort" => {
            let names = ["reverse", "case_sensitive", "attribute"];
            let [reverse, case, path] = args.bind(name, names, 0)?;
            let case = args::flag(case.as_ref(), false);
            let paths: Vec<Option<Value>> = match &path {
                Some(Value::Str(path)) => path.text.split(',').map(Value::str).map(Some).collect(),
                other => vec![other.clone()],
            };
            let mut keyed = Vec::new();
            for item in value.iterate()? {
                let mut key = Vec::with_capacity(paths.len());
                for path in &paths {
                    let part = attribute(interp, &item, path.as_ref(), None)?;
                    key.push(ignore_case(part, case)?);
                }
                keyed.push((Value::list(key), item));
            }
            Ok(Value::list(sorted(
                keyed,
                args::flag(reverse.as_ref(), false),
            )?))
        }
        _ => {
            let [case, path] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
            let case = args::flag(case.as_ref(), false);
            let mut seen: Vec<Value> = Vec::new();
            let mut unique = Vec::new();
            for item in value.iterate()? {
                let key = attribute(interp, &item, path.as_ref(), None)?;
                let key = ignore_case(key, case)?;
                if !hashable(&key) {
                    let kind = key.type_name();
                    return Err(Fault::new(format!("unhashable type: '{kind}'")));
                }
                if !seen.iter().any(|other| ops::equal(other, &key)) {
                    seen.push(key);
                    unique.push(item);
                }
            }
            Ok(Value::generator(unique))
        }
    }
}

/// `batch` (lists of a length) and `slice` (a number of lists).
fn parts(name: &str, value: &Value, args: Args) -> Result<Value> {
    let [count, fill] = args.bind(name, ["count", "fill_with"], 1)?;
    let count = args::integer(count.as_ref(), 0)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let items = value.iterate()?;
    let size = limits::count(count);
    limits::items(size)?;
    let mut lists: Vec<Vec<Value>> = Vec::new();
    if name == "batch" {
        // As Jinja does it, a first list of none included where lists have no items.
        let mut list: Vec<Value> = Vec::new();
        for item in items {
            if list.len() as i128 == count {
                lists.push(std::mem::take(&mut list));
            }
            list.push(item);
        }
        if let (Some(fill), false) = (fill, list.is_empty()) {
            let length = list.len().max(size);
            list.resize(length, fill);
        }
        lists.extend(Some(list).filter(|list| !list.is_empty()));
    } else {
        let count = size;
        if count == 0 {
            return Err(Fault::new("integer division or modulo by zero"));
        }
        let (each, extra) = (items.len() / count, items.len() % count);
        let mut rest = items.as_slice();
        for number in 0..count {
            let (list, after) = rest.split_at(each + usize::from(number < extra));
            let mut list = list.to_vec();
            list.extend(fill.clone().filter(|_| number >= extra));
            lists.push(list);
            rest = after;
        }
    }
    Ok(Value::generator(lists.into_iter().map(Value::list)))
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case, by, reverse] = args.bind("dictsort", names, 0)?;
    let case = args::flag(case.as_ref(), false);
    let by_value = match args::string(by.as_ref(), "dictsort")? {
        None | Some("key") => false,
        Some("value") => true,
        Some(_) => {
            return Err(Fault::new(
                "You can only sort by either \"key\" or \"value\"",
            ));
        }
    };
    let Value::Dict(dict) = value else {
        let kind = value.type_name();
        return Err(Fault::new(format!(
            "'{kind}' object has no attribute 'items'"
        )));
    };
    let key = |(key, value): &(Value, Value)| {
        ignore_case(if by_value { value.clone() } else { key.clone() }, case)
    };
    let keys: Vec<Value> = dict.iter().map(key).collect::<Result<_>>()?;
    let keyed = keys.into_iter().zip(dict.pairs()).collect();
    Ok(Value::list(sorted(
        keyed,
        args::flag(reverse.as_ref(), false),
    )?))
}

fn group_by(interp: &mut Interp, value: &Value, args: Args) -> Result<Value> {
    let names = ["attribute", "default", "case_sensitive"];
    let [path, default, case] = args.bind("groupby", names, 1)?;
    let case = args::flag(case.as_ref(), false);
    let default = default.filter(|default| !matches!(default, Value::None));
    let mut keyed = Vec::new();
    for item in value.iterate()? {
        let key = attribute(interp, &item, path.as_ref(), default.as_ref())?;
        let sort_key = ignore_case(key.clone(), case)?;
        keyed.push((sort_key.clone(), Value::tuple(vec![sort_key, key, item])));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for entry in sorted(keyed, false)? {
        let [sort_key, key, item] = <[Value; 3]>::try_from(entry.iterate()?)
            .map_err(|_| Fault::new("groupby lost an item"))?;
        match groups
            .last_mut()
            .filter(|group| ops::equal(&group.0, &sort_key))
        {
            Some(group) => group.2.push(item),
            None => groups.push((sort_key, key, vec![item])),
        }
    }
    let group = |(_, key, items): (Value, Value, Vec<Value>)| {
        Value::Tuple(Rc::new(Tuple {
            items: Items::new(vec![key, Value::list(items)]),
            fields: &["grouper", "list"],
        }))
    };
    Ok(Value::list(groups.into_iter().map(group).collect()))
}

fn extreme(interp: &mut Interp, name: &str, value: &Value, args: Args) -> Result<Value> {
    let [case, path] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let case = args::flag(case.as_ref(), false);
    let mut best: Option<(Value, Value)> = None;
    for item in value.iterate()? {
        let key = attribute(interp, &item, path.as_ref(), None)?;
        let key = ignore_case(key, case)?;
        let better = match &best {
            None => true,
            Some((other, _)) if name == "min" => ops::less(&key, other)?,
            Some((other, _)) => ops::less(other, &key)?,
        };
        if better {
            best = Some((key, item));
        }
    }
    let none = || Value::undefined("No aggregated item, sequence was empty.");
    Ok(best.map_or_else(none, |(_, item)| item))
}
