//! Jinja's filters on lists: sorting, picking, grouping and joining.
//!
//! Not here: filters on single values; those are in `filters.rs`.

use super::call::{Given, needed_text, whole};
use super::run::Run;
use super::value::{Value, equal, order};
use super::{Fault, Outcome, characters, operators, print};
use std::cmp::Ordering;

/// An item, and the key by which it is compared.
struct Keyed {
    key: Value,
    item: Value,
}

/// A group of `groupby`.
struct Group {
    /// The key by which items are compared.
    key: Value,
    /// The key to show: that of the first item.
    shown: Value,
    items: Vec<Value>,
}

fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

impl Run {
    pub(crate) fn list_filter(&mut self, value: &Value, name: &str, given: Given) -> Outcome<Value> {
        match name {
            "list" => {
                given.none()?;
                let items = self.items(value)?;
                Value::list(items, &mut self.meter)
            }
            "first" => {
                given.none()?;
                Ok(self.first(value)?.unwrap_or_else(Value::undefined))
            }
            "last" => {
                given.none()?;
                if matches!(value, Value::Iterator(_)) {
                    return Err(Fault::new("last needs a list, not a generator"));
                }
                Ok(self.items(value)?.pop().unwrap_or_else(Value::undefined))
            }
            "reverse" => {
                given.none()?;
                let mut items = self.items(value)?;
                items.reverse();
                if let Value::Text(text) = value {
                    return Value::new_text(text.chars().rev().collect(), &mut self.meter);
                }
                self.generator(items)
            }
            "items" => {
                given.none()?;
                match value {
                    Value::Undefined(_) => self.generator(Vec::new()),
                    Value::Dict(_) => {
                        let view = self.call_method(value, "items", &Given::default())?;
                        let items = self.items(&view)?;
                        self.generator(items)
                    }
                    other => Err(Fault::new(format!("items needs a dict, not a {}", other.type_name()))),
                }
            }
            "join" => self.join(value, &given),
            "sum" => self.sum(value, &given),
            "min" => self.extreme(value, Ordering::Less, &given),
            "max" => self.extreme(value, Ordering::Greater, &given),
            "sort" => {
                let [reverse, case, attribute] = given.named(["reverse", "case_sensitive", "attribute"])?;
                let items = self.items(value)?;
                let keyed = self.keyed(items, attribute.as_ref(), is_true(case))?;
                let items = self.sorted(keyed, is_true(reverse))?.into_iter().map(|keyed| keyed.item).collect();
                Value::list(items, &mut self.meter)
            }
            "unique" => self.unique(value, &given),
            "groupby" => self.group_by(value, &given),
            "dictsort" => self.dict_sort(value, &given),
            "batch" | "slice" => self.portions(value, name, &given),
            "map" => self.map(value, given),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(value, name, given),
            _ => Err(Fault::new(format!("the filter `{name}` is unknown or not supported here"))),
        }
    }

    fn sum(&mut self, value: &Value, given: &Given) -> Outcome<Value> {
        let [attribute, start] = given.named(["attribute", "start"])?;
        let mut sum = start.unwrap_or(Value::Int(0));
        for item in self.items(value)? {
            let item = self.of(&item, attribute.as_ref())?;
            sum = operators::binary(super::ast::Operator::Add, &sum, &item, &mut self.meter)?;
        }
        Ok(sum)
    }

    /// The smallest item for `Less`, the largest for `Greater`; the first one of equal items.
    fn extreme(&mut self, value: &Value, wanted: Ordering, given: &Given) -> Outcome<Value> {
        let [case, attribute] = given.named(["case_sensitive", "attribute"])?;
        let case = is_true(case);
        let mut best: Option<Keyed> = None;
        for item in self.items(value)? {
            let key = self.of(&item, attribute.as_ref())?;
            let key = self.folded(key, case)?;
            let better = match &best {
                Some(known) => order(&key, &known.key, &mut self.meter)? == Some(wanted),
                None => true,
            };
            if better {
                best = Some(Keyed { key, item });
            }
        }
        Ok(best.map_or_else(Value::undefined, |best| best.item))
    }

    fn unique(&mut self, value: &Value, given: &Given) -> Outcome<Value> {
        let [case, attribute] = given.named(["case_sensitive", "attribute"])?;
        let items = self.items(value)?;
        let mut kept: Vec<Keyed> = Vec::new();
        'items: for keyed in self.keyed(items, attribute.as_ref(), is_true(case))? {
            for known in &kept {
                if equal(&known.key, &keyed.key, &mut self.meter)? {
                    continue 'items;
                }
            }
            kept.push(keyed);
        }
        self.generator(kept.into_iter().map(|kept| kept.item).collect())
    }

    fn dict_sort(&mut self, value: &Value, given: &Given) -> Outcome<Value> {
        let [case, by, reverse] = given.named(["case_sensitive", "by", "reverse"])?;
        let by = self.text_or(by.as_ref(), "key")?;
        let at = match &*by {
            "key" => Value::Int(0),
            "value" => Value::Int(1),
            _ => return Err(Fault::new("dictsort: by is \"key\" or \"value\"")),
        };
        if !matches!(value, Value::Dict(_)) {
            return Err(Fault::new(format!("dictsort needs a dict, not a {}", value.type_name())));
        }
        let view = self.call_method(value, "items", &Given::default())?;
        let items = self.items(&view)?;
        let keyed = self.keyed(items, Some(&at), is_true(case))?;
        let items = self.sorted(keyed, is_true(reverse))?.into_iter().map(|keyed| keyed.item).collect();
        Value::list(items, &mut self.meter)
    }

    /// An item, or its attribute.
    fn of(&mut self, item: &Value, attribute: Option<&Value>) -> Outcome<Value> {
        match attribute {
            None | Some(Value::None) => Ok(item.clone()),
            Some(attribute) => self.path(item, attribute),
        }
    }

    /// The key to compare: in lower case, unless case counts.
    fn folded(&mut self, key: Value, case: bool) -> Outcome<Value> {
        match key {
            Value::Text(text) if !case => Value::new_text(characters::cased(&text, "lower"), &mut self.meter),
            other => Ok(other),
        }
    }

    /// Items with their keys. An attribute may be several, with commas between them.
    fn keyed(&mut self, items: Vec<Value>, attribute: Option<&Value>, case: bool) -> Outcome<Vec<Keyed>> {
        let several: Option<Vec<Value>> = match attribute {
            Some(Value::Text(names)) if names.contains(',') => Some(names.split(',').map(Value::text).collect()),
            _ => None,
        };
        let mut keyed = Vec::with_capacity(items.len());
        for item in items {
            let key = match &several {
                Some(names) => {
                    let mut keys = Vec::new();
                    for name in names {
                        let key = self.path(&item, name)?;
                        keys.push(self.folded(key, case)?);
                    }
                    Value::list(keys, &mut self.meter)?
                }
                None => {
                    let key = self.of(&item, attribute)?;
                    self.folded(key, case)?
                }
            };
            keyed.push(Keyed { key, item });
        }
        Ok(keyed)
    }

    /// Sorted by key, equal ones in their order. A merge sort by hand: values without an order, such as `nan`, could make a
    /// library's sort panic.
    fn sorted(&mut self, mut keyed: Vec<Keyed>, reverse: bool) -> Outcome<Vec<Keyed>> {
        if keyed.len() < 2 {
            return Ok(keyed);
        }
        self.meter.items(keyed.len())?;
        let upper = keyed.split_off(keyed.len() / 2);
        let lower = self.sorted(keyed, reverse)?;
        let upper = self.sorted(upper, reverse)?;
        let (mut lower, mut upper) = (lower.into_iter().peekable(), upper.into_iter().peekable());
        let wanted = if reverse { Ordering::Greater } else { Ordering::Less };
        let mut merged = Vec::with_capacity(lower.len() + upper.len());
        while let (Some(one), Some(other)) = (lower.peek(), upper.peek()) {
            let upper_first = order(&other.key, &one.key, &mut self.meter)? == Some(wanted);
            merged.extend(if upper_first { upper.next() } else { lower.next() });
        }
        merged.extend(lower);
        merged.extend(upper);
        Ok(merged)
    }

    fn join(&mut self, value: &Value, given: &Given) -> Outcome<Value> {
        let [separator, attribute] = given.named(["d", "attribute"])?;
        let separator = match separator {
            Some(separator) => print::text(&separator, &mut self.meter)?,
            None => String::new(),
        };
        let mut joined = String::new();
        for (at, item) in self.items(value)?.iter().enumerate() {
            let item = self.of(item, attribute.as_ref())?;
            if at > 0 {
                self.meter.bytes(separator.len())?;
                joined.push_str(&separator);
            }
            joined.push_str(&print::text(&item, &mut self.meter)?);
        }
        Value::new_text(joined, &mut self.meter)
    }

    fn group_by(&mut self, value: &Value, given: &Given) -> Outcome<Value> {
        let [attribute, default, case] = given.named(["attribute", "default", "case_sensitive"])?;
        let case = is_true(case);
        let mut keyed = Vec::new();
        for item in self.items(value)? {
            let key = self.of(&item, attribute.as_ref())?;
            let key = if key.is_undefined() { default.clone().unwrap_or(key) } else { key };
            keyed.push(Keyed { key, item });
        }
        // Sorted by the folded key; the item is a pair with the key to show.
        let mut folded = Vec::with_capacity(keyed.len());
        for Keyed { key: shown, item } in keyed {
            let key = self.folded(shown.clone(), case)?;
            let item = Value::tuple(vec![shown, item], &mut self.meter)?;
            folded.push(Keyed { key, item });
        }
        let mut groups: Vec<Group> = Vec::new();
        for Keyed { key, item: pair } in self.sorted(folded, false)? {
            let [shown, item] = &self.items(&pair)?[..] else { continue };
            match groups.last_mut() {
                Some(group) if equal(&group.key, &key, &mut self.meter)? => group.items.push(item.clone()),
                _ => groups.push(Group { key, shown: shown.clone(), items: vec![item.clone()] }),
            }
        }
        let mut values = Vec::new();
        for Group { shown, items, .. } in groups {
            let items = Value::list(items, &mut self.meter)?;
            values.push(Value::group(shown, items, &mut self.meter)?);
        }
        Value::list(values, &mut self.meter)
    }

    fn portions(&mut self, value: &Value, name: &str, given: &Given) -> Outcome<Value> {
        let [count, fill] = given.named([if name == "batch" { "linecount" } else { "slices" }, "fill_with"])?;
        let count = usize::try_from(whole(count.as_ref(), 0)?).unwrap_or_default();
        if count == 0 {
            return Err(Fault::new(format!("{name} needs a number above zero")));
        }
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let items = self.items(value)?;
        let mut portions: Vec<Vec<Value>> = Vec::new();
        if name == "batch" {
            portions.extend(items.chunks(count).map(<[Value]>::to_vec));
            if let (Some(last), Some(fill)) = (portions.last_mut(), &fill) {
                self.meter.items(count)?;
                last.resize(count, fill.clone());
            }
        } else {
            self.meter.items(count)?;
            let (each, larger) = (items.len() / count, items.len() % count);
            let mut rest = items.into_iter();
            for at in 0..count {
                let mut portion: Vec<Value> = rest.by_ref().take(each + usize::from(at < larger)).collect();
                if let Some(fill) = fill.as_ref().filter(|_| at >= larger && larger > 0) {
                    portion.push(fill.clone());
                }
                portions.push(portion);
            }
        }
        let portions = portions.into_iter().map(|portion| Value::list(portion, &mut self.meter));
        let portions = portions.collect::<Outcome<Vec<_>>>()?;
        self.generator(portions)
    }

    fn map(&mut self, value: &Value, given: Given) -> Outcome<Value> {
        let mut mapped = Vec::new();
        if given.positional.is_empty() {
            let [attribute, default] = given.named(["attribute", "default"])?;
            let attribute = attribute.ok_or_else(|| Fault::new("map needs a filter or an attribute"))?;
            for item in self.items(value)? {
                let found = self.path(&item, &attribute)?;
                mapped.push(if found.is_undefined() { default.clone().unwrap_or(found) } else { found });
            }
            return self.generator(mapped);
        }
        let (filter, given) = given.split_first()?;
        let filter = needed_text(Some(&filter))?;
        for item in self.items(value)? {
            self.meter.items(given.positional.len() + given.named.len())?;
            let given = Given { positional: given.positional.clone(), named: given.named.clone() };
            self.meter.enter()?;
            mapped.push(self.filter(&item, &filter, given)?);
            self.meter.leave();
        }
        self.generator(mapped)
    }

    fn select(&mut self, value: &Value, name: &str, given: Given) -> Outcome<Value> {
        let wanted = name.starts_with("select");
        let (attribute, given) = if name.ends_with("attr") {
            let (attribute, given) = given.split_first()?;
            (Some(attribute), given)
        } else {
            (None, given)
        };
        let test = if given.positional.is_empty() { None } else { Some(given) };
        let test = test.map(Given::split_first).transpose()?;
        let test = test.map(|(name, given)| Ok::<_, Fault>((needed_text(Some(&name))?, given))).transpose()?;
        let mut kept = Vec::new();
        for item in self.items(value)? {
            let asked = self.of(&item, attribute.as_ref())?;
            let holds = match &test {
                Some((test, given)) => self.test(&asked, test, given)?,
                None => asked.is_true(),
            };
            if holds == wanted {
                kept.push(item);
            }
        }
        self.generator(kept)
    }
}
