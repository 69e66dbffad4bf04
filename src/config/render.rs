//! Configuration files as text.

use super::problem::variable;
use super::settings::is_reloadable;
use super::table::{Key, Section};

/// Every key with its default and what it does.
pub(super) fn defaults(sections: &[Section]) -> String {
    let mut text = HEADER.to_owned();
    for section in sections {
        text.push_str(&format!("\n# ---- {} ----\n", section.title));
        for key in section.keys {
            text.push('\n');
            text.push_str(&explained(key));
        }
    }
    text
}

/// Keys with their values, as TOML.
pub(super) fn chosen(values: &[(&str, String)]) -> String {
    let mut text = CHOSEN_HEADER.to_owned();
    for (name, value) in values {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text
}

fn explained(key: &Key) -> String {
    let mut text = String::new();
    for line in key.doc {
        text.push_str(&format!("#{line}\n"));
    }
    let limits = match key.limits {
        Some((least, most)) => {
            let bare = |toml: &'static str| toml.trim_matches('"');
            format!(", {} to {}", bare(least), bare(most))
        }
        None => String::new(),
    };
    let reload = if is_reloadable(key.name) {
        " Changes with SIGHUP."
    } else {
        ""
    };
    text.push_str(&format!(
        "# Write {}{limits}; for example {} = {}. Environment: {}.{reload}\n",
        key.form,
        key.name,
        key.example,
        variable(key.name)
    ));
    text.push_str(&format!("{} = {}\n", key.name, key.default));
    text
}

const HEADER: &str = "\
# All settings of a Quorate node, with their defaults (TOML).
#
# Every key can also be set in the environment (QUORATE_N=3) and on the command line
# (--set n=3). The command line counts more than the environment, the environment more than
# this file, and this file more than the defaults. A key that is left out has its default.
#
# Durations are whole numbers with units: 250ms, 1s, 1h30m. Sizes are bytes, or have a unit:
# 1048576, 64MiB, 16KB. Relative paths start from the directory in which the node is started.
#
# What changes with SIGHUP (`systemctl reload quorate`) does so without a restart; the rest needs
# one. `quorate config check FILE` tells what is wrong with a file before a node reads it.
";

const CHOSEN_HEADER: &str = "\
# A Quorate node. Keys that are not here have their defaults; `quorate config default` shows
# all keys and what they do.

";
