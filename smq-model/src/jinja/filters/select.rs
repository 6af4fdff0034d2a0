//! Filters that apply another filter or a test to every item.

use super::super::args::Args;
use super::super::checks;
use super::super::error::{Fault, Result};
use super::super::interp::Interp;
use super::super::value::Value;
use super::attribute;

pub(super) fn apply(
    interp: &mut Interp,
    name: &str,
    value: Value,
    mut args: Args,
) -> Result<Value> {
    // Nothing is asked of what is false: `none | map(...)` is empty.
    if !value.truth() {
        return Ok(Value::generator([]));
    }
    let items = value.iterate()?;
    if name == "map" {
        return map(interp, items, args);
    }
    let mut given = std::mem::take(&mut args.list).into_iter();
    let path = match name.ends_with("attr") {
        true => Some(
            given
                .next()
                .ok_or_else(|| Fault::new("Missing parameter for attribute name"))?,
        ),
        false => None,
    };
    let test = given.next();
    args.list = given.collect();
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in items {
        let tested = match &path {
            Some(path) => attribute(interp, &item, Some(path), None)?,
            None => item.clone(),
        };
        let holds = match &test {
            None => tested.truth(),
            Some(test) => match test.as_str().filter(|test| checks::exists(test)) {
                Some(test) => checks::apply(test, &tested, args.clone())?,
                None => {
                    let test = super::super::show::string(test);
                    return Err(Fault::new(format!("No test named '{test}'.")));
                }
            },
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    Ok(Value::generator(kept))
}

fn map(interp: &mut Interp, items: Vec<Value>, mut args: Args) -> Result<Value> {
    let by_attribute = args.named.iter().any(|(name, _)| &**name == "attribute");
    let mut mapped = Vec::with_capacity(items.len());
    if args.list.is_empty() && by_attribute {
        let [path, default] = args.bind("map", ["attribute", "default"], 1)?;
        let default = default.filter(|default| !matches!(default, Value::None));
        for item in &items {
            mapped.push(attribute(interp, item, path.as_ref(), default.as_ref())?);
        }
        return Ok(Value::generator(mapped));
    }
    if args.list.is_empty() {
        return Err(Fault::new("map requires a filter argument"));
    }
    let filter = args.list.remove(0);
    let filter = filter.as_str().unwrap_or_default();
    for item in items {
        let made = interp.deeper(|interp| super::apply(interp, filter, item, args.clone()))?;
        mapped.push(made);
    }
    Ok(Value::generator(mapped))
}
