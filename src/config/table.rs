//! The form of the table of keys, and how one row of it is applied.

use super::problem::{Fault, Problem};
use super::source::Given;
use super::value::{Raw, Refusal, Value};

/// Keys that belong together, under one heading.
#[derive(Debug)]
pub(super) struct Section {
    /// The heading.
    pub(super) title: &'static str,
    /// In the order in which they are shown.
    pub(super) keys: &'static [Key],
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// As it is written in a file.
    pub(super) name: &'static str,
    /// What to write for it.
    pub(super) form: &'static str,
    /// As TOML.
    pub(super) default: &'static str,
    /// A value one might choose, as TOML.
    pub(super) example: &'static str,
    /// The least and the most allowed, both as TOML.
    pub(super) limits: Option<(&'static str, &'static str)>,
    /// What it does, line by line.
    pub(super) doc: &'static [&'static str],
}

/// Says what is wrong with a value of the right type and within its limits.
pub(super) type Check<T> = fn(&T) -> Result<(), String>;

/// Makes, from one table, the `Settings`, the `SECTIONS` that describe them, and the `Draft` that
/// reads them. A row is
///
/// ```text
/// /// What the key does.
/// pub key: Type = default, like example, within least to most, check function;
/// ```
///
/// with values as in TOML. The last two parts may be missing; the function says what is wrong with
/// a value of the right type.
macro_rules! settings {
    ($(#[doc = $about:literal])+ struct Settings;
     $( $title:literal { $(
        $(#[doc = $doc:literal])+
        $vis:vis $key:ident: $type:ty = $default:tt, like $like:tt
            $(, within $least:tt to $most:tt)? $(, check $check:expr)?;
     )+ } )+) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings {
            $( $( $(#[doc = $doc])+ $vis $key: $type, )+ )+
            /// n, r and w, known to fit together.
            quorum: Quorum,
        }

        /// The whole table.
        pub(super) const SECTIONS: &[Section] = &[ $( Section {
            title: $title,
            keys: &[ $(
                settings!(@row $(#[doc = $doc])+ $key: $type = $default, $like $(, $least, $most)?)
            ),+ ],
        } ),+ ];

        /// Settings in the making: what is missing here was refused, and the problem noted.
        #[derive(Debug)]
        pub(super) struct Draft {
            $( $( pub(super) $key: Option<$type>, )+ )+
        }

        impl Draft {
            /// Reads every key, from where it was given or else from its default.
            pub(super) fn read(given: &Given, problems: &mut Vec<Problem>) -> Self {
                Self { $( $( $key: {
                    const ROW: Key = settings!(
                        @row $(#[doc = $doc])+ $key: $type = $default, $like $(, $least, $most)?
                    );
                    let checks: &[Check<$type>] = &[ $( $check )? ];
                    read(&ROW, checks, given, problems)
                }, )+ )+ }
            }

            /// The settings, unless any key was refused.
            pub(super) fn finish(self, quorum: Quorum) -> Option<Settings> {
                Some(Settings { $( $( $key: self.$key?, )+ )+ quorum })
            }
        }

        impl Settings {
            /// Every key that does not have its default, with its value as TOML.
            pub(super) fn chosen(&self) -> Vec<(&'static str, String)> {
                let mut chosen = Vec::new();
                $( $( if !is_default(&self.$key, stringify!($default)) {
                    chosen.push((stringify!($key), self.$key.to_toml()));
                } )+ )+
                chosen
            }

            /// Every key with its value as TOML.
            pub(super) fn all(&self) -> Vec<(&'static str, String)> {
                vec![ $( $( (stringify!($key), self.$key.to_toml()) ),+ ),+ ]
            }

            /// Takes over the keys that can change while a node runs.
            pub(super) fn take_reloadable(&mut self, from: &Self) {
                $( $( if is_reloadable(stringify!($key)) {
                    self.$key = from.$key.clone();
                } )+ )+
            }
        }
    };
    (@row $(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:tt, $like:tt
        $(, $least:tt, $most:tt)?) => {
        Key {
            name: stringify!($key),
            form: <$type as Value>::FORM,
            default: stringify!($default),
            example: stringify!($like),
            limits: settings!(@limits $($least, $most)?),
            doc: &[ $( $doc ),+ ],
        }
    };
    (@limits) => { None };
    (@limits $least:tt, $most:tt) => { Some((stringify!($least), stringify!($most))) };
}
pub(super) use settings;

/// Reads one key, from where it was given or else from its default.
pub(super) fn read<T: Value>(
    key: &Key,
    checks: &[Check<T>],
    given: &Given,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    match parse(key, checks, &given.raw(key)) {
        Ok(value) => Some(value),
        Err(refusal) => {
            problems.push(Problem {
                place: given.place(key.name),
                fault: fault(key, given, refusal),
            });
            None
        }
    }
}

/// Whether a value is the one that the table has as default.
pub(super) fn is_default<T: Value>(value: &T, default: &str) -> bool {
    T::parse(&Raw::from_toml(default)).is_ok_and(|default| default == *value)
}

fn parse<T: Value>(key: &Key, checks: &[Check<T>], raw: &Raw) -> Result<T, Refusal> {
    let value = T::parse(raw)?;
    if let Some((least, most)) = key.limits {
        let limit = |toml| T::parse(&Raw::from_toml(toml));
        if value < limit(least)? || value > limit(most)? {
            return Err(Refusal::OutOfRange);
        }
    }
    for check in checks {
        check(&value).map_err(Refusal::Bad)?;
    }
    Ok(value)
}

fn fault(key: &Key, given: &Given, refusal: Refusal) -> Fault {
    let write = given.place(key.name).advice(key.name, key.example);
    let text = given.assignment(key);
    match (refusal, key.limits) {
        (Refusal::Missing, _) => Fault::Missing {
            key: key.name,
            form: key.form,
            write,
        },
        (Refusal::WrongType, _) => Fault::WrongType {
            given: text,
            form: key.form,
            write,
        },
        (Refusal::OutOfRange, Some((least, most))) => Fault::OutOfRange {
            given: text,
            least: least.trim_matches('"'),
            most: most.trim_matches('"'),
            write,
        },
        (Refusal::OutOfRange, None) => Fault::BadValue {
            given: text,
            reason: "the number is too large".to_owned(),
            write: format!("for example {write}"),
        },
        (Refusal::Bad(reason), _) => Fault::BadValue {
            given: text,
            reason,
            write: format!("for example {write}"),
        },
    }
}
