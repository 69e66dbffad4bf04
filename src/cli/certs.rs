//! `quorate certs`: a private authority, and certificates for the members of its cluster.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, value_parser};
use serde::Serialize;

use crate::model::{Millis, NodeId};
use crate::net::{
    AuthorityError, CertificateAuthority, CertificateFacts, DAYS_MAX, Existing, Holder, Identity,
    IssuedFiles, PemFileError, Role, load_chain, utc_text,
};

/// Make, issue and show certificates.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make the private certificate authority of a new cluster (ca.pem, ca.key)
    #[command(after_help = "Examples:\n  quorate certs init --cluster blue\n  \
        quorate certs init --dir /root/blue-ca --cluster blue --days 7300")]
    Init(InitArgs),
    /// Issue a certificate and its key to a node, a client or an admin (NAME.pem, NAME.key)
    #[command(after_help = "Examples:\n  quorate certs issue --node cache-1\n  \
        quorate certs issue --node cache-1 --force --days 90\n  \
        quorate certs issue --admin ops --out ~/.quorate")]
    Issue(IssueArgs),
    /// Take certificates back: adds them to the authority's revocation list (ca.crl)
    #[command(
        after_help = "Copy ca.crl to every node, as crl_file: nodes read it again by themselves, \
        and cut off whoever it names.\n\nExamples:\n  quorate certs revoke certs/node-2.pem\n  \
        quorate certs revoke --dir certs   (renews the list's date, adds nothing)"
    )]
    Revoke(RevokeArgs),
    /// Show whom certificates are for and how long they last
    #[command(after_help = "Examples:\n  quorate certs show\n  \
        quorate certs show --json /etc/quorate/cache-1.pem")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Where to write; made with mode 0700 when it is missing
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// The name of the cluster, written into every certificate of it
    #[arg(long, value_name = "NAME", default_value = "quorate")]
    cluster: String,
    /// How long the authority lasts
    #[arg(long, default_value_t = 3650, value_parser = value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

#[derive(Debug, Args)]
struct IssueArgs {
    #[command(flatten)]
    who: Who,
    /// Where the authority is
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// Where to write [default: where the authority is]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long the certificate lasts, at most as long as the authority
    #[arg(long, default_value_t = 365, value_parser = value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// Host names and addresses, for other tools: nodes check the name in the certificate
    #[arg(long, value_name = "HOST_OR_IP", num_args = 1..)]
    san: Vec<String>,
    /// Replace the certificate and the key that are there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// The certificates
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the authority is, and its list
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// After how many days the list should be written anew; it counts on after that
    #[arg(long, default_value_t = 365, value_parser = value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// A member of the ring
    #[arg(long, value_name = "NAME")]
    node: Option<NodeId>,
    /// A native client: reads and writes keys
    #[arg(long, value_name = "NAME")]
    client: Option<NodeId>,
    /// One who looks after the cluster
    #[arg(long, value_name = "NAME")]
    admin: Option<NodeId>,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Certificates [default: all *.pem of DIR]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The directory to look through
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// One JSON document, with the whole fingerprints
    #[arg(long)]
    json: bool,
}

/// Carries out the subcommand.
///
/// # Errors
/// With one line that says what failed and what to do about it.
pub fn run(args: &CertsArgs, now: Millis, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.command {
        CertsCommand::Init(args) => init(args, now, out),
        CertsCommand::Issue(args) => issue(args, now, out),
        CertsCommand::Revoke(args) => revoke(args, now, out),
        CertsCommand::Show(args) => show(args, now, out),
    }
}

fn revoke(args: &RevokeArgs, now: Millis, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = load(&args.dir)?;
    let mut certificates = Vec::new();
    for file in &args.files {
        // The holder's own is the first; others are those between it and the authority.
        let chain = load_chain(file)?;
        let first = chain.first().context("a file without a certificate")?;
        certificates.push((file, first.clone()));
    }
    let ders: Vec<&[u8]> = certificates.iter().map(|(_, der)| der.as_ref()).collect();
    let path = authority.revoke(&ders, &args.dir, args.days, now)?;
    for (file, der) in &certificates {
        let who = CertificateFacts::from_der(der)?.holder;
        let who = match who {
            Holder::Member(identity) => identity.to_string(),
            Holder::Authority { .. } => "an authority".to_owned(),
        };
        writeln!(out, "Took back {who} ({})", file.display())?;
    }
    writeln!(
        out,
        "{}  copy it to every node, as crl_file: they cut off whoever it names",
        path.display()
    )?;
    Ok(())
}

fn init(args: &InitArgs, now: Millis, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = CertificateAuthority::create(&args.cluster, args.days, now)?;
    let files = authority.save(&args.dir).map_err(|error| match error {
        AuthorityError::File(PemFileError::Exists { .. }) => {
            anyhow!("{error}: use it, or make the new authority in another --dir")
        }
        error => error.into(),
    })?;
    let dir = args.dir.display();
    writeln!(
        out,
        "Made the authority of cluster `{}`, valid until {}:\n  \
         {}  every member needs a copy\n  \
         {}  keep it safe: whoever has it can join the cluster\n\
         Next: quorate certs issue --node NAME --dir {dir}",
        authority.cluster(),
        utc_text(authority.not_after()),
        files.cert.display(),
        files.key.display(),
    )?;
    Ok(())
}

fn issue(args: &IssueArgs, now: Millis, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = load(&args.dir)?;
    let identity = args.who.identity(authority.cluster())?;
    let issued = authority.issue(&identity, &args.san, args.days, now)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let target = args.out.as_ref().unwrap_or(&args.dir);
    let saved = issued.save(target, existing).map_err(|error| match error {
        AuthorityError::File(PemFileError::Exists { .. }) => {
            anyhow!("{error}: add --force to replace it")
        }
        error => error.into(),
    })?;
    let IssuedFiles { cert, key } = saved;
    writeln!(
        out,
        "Issued {identity}, valid until {}:\n  {}\n  {}",
        utc_text(issued.not_after),
        cert.display(),
        key.display(),
    )?;
    Ok(())
}

fn load(dir: &Path) -> anyhow::Result<CertificateAuthority> {
    let missing = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    CertificateAuthority::load(dir).map_err(|error| match error {
        AuthorityError::File(PemFileError::Io { ref path, .. }) if missing(path) => anyhow!(
            "{error}: make an authority with `quorate certs init --dir {}`",
            dir.display()
        ),
        error => error.into(),
    })
}

impl Who {
    fn identity(&self, cluster: &str) -> anyhow::Result<Identity> {
        let named = [
            (Role::Node, &self.node),
            (Role::Client, &self.client),
            (Role::Admin, &self.admin),
        ];
        let named = named
            .into_iter()
            .find_map(|(role, name)| name.clone().map(|name| (role, name)));
        // The command line requires exactly one; this is for other callers.
        let (role, name) = named.context("say for whom: --node, --client or --admin")?;
        Ok(Identity::new(cluster, role, name)?)
    }
}

fn show(args: &ShowArgs, now: Millis, out: &mut dyn Write) -> anyhow::Result<()> {
    let files = if args.files.is_empty() {
        pem_files(&args.dir)?
    } else {
        args.files.clone()
    };
    let mut shown = Shown::default();
    let mut unreadable = Vec::new();
    for file in &files {
        match CertificateFacts::read_file(file) {
            Ok(found) => shown
                .certificates
                .extend(found.into_iter().map(|facts| Line::new(file, facts, now))),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &shown)?;
        writeln!(out)?;
    } else if !shown.certificates.is_empty() {
        write_table(&shown.certificates, out)?;
    }
    // After the good ones: one foreign file must not hide the rest.
    if unreadable.is_empty() {
        Ok(())
    } else {
        Err(anyhow!(unreadable.join("; ")))
    }
}

fn pem_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = |error| anyhow!("cannot read the directory {}: {error}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot_read)? {
        let path = entry.map_err(cannot_read)?.path();
        if path.extension() == Some(OsStr::new("pem")) {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!(
            "no certificates in {}: name files, or make an authority with `quorate certs init`",
            dir.display()
        );
    }
    files.sort();
    Ok(files)
}

/// The document of `certs show --json`.
#[derive(Debug, Default, Serialize)]
struct Shown {
    certificates: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    file: String,
    /// `ca` or the role of a member.
    role: &'static str,
    name: Option<String>,
    cluster: Option<String>,
    not_before: String,
    not_after: String,
    days_left: i64,
    issuer: String,
    fingerprint: String,
    #[serde(skip)]
    validity: Validity,
}

#[derive(Debug, Clone, Copy)]
enum Validity {
    Later,
    Now,
    Over,
}

impl Line {
    fn new(file: &Path, facts: CertificateFacts, now: Millis) -> Self {
        let days_left = facts.days_left(now);
        let validity = if now < facts.not_before {
            Validity::Later
        } else if now > facts.not_after {
            Validity::Over
        } else {
            Validity::Now
        };
        let (role, name, cluster) = match facts.holder {
            Holder::Authority { cluster } => ("ca", None, cluster),
            Holder::Member(member) => (
                member.role().as_str(),
                Some(member.name().to_string()),
                Some(member.cluster().to_owned()),
            ),
        };
        Self {
            file: file.display().to_string(),
            role,
            name,
            cluster,
            not_before: utc_text(facts.not_before),
            not_after: utc_text(facts.not_after),
            days_left,
            issuer: facts.issuer,
            fingerprint: facts.fingerprint,
            validity,
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            self.file.clone(),
            self.role.to_owned(),
            or_dash(&self.name),
            or_dash(&self.cluster),
            self.not_after.clone(),
            match self.validity {
                Validity::Later => "not yet valid".to_owned(),
                Validity::Now => self.days_left.to_string(),
                Validity::Over => "expired".to_owned(),
            },
            self.issuer.clone(),
            // Enough to tell two apart by eye; the whole is in the JSON.
            self.fingerprint.chars().take(FINGERPRINT_CHARS).collect(),
        ]
    }
}

fn write_table(lines: &[Line], out: &mut dyn Write) -> std::io::Result<()> {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(lines.iter().map(Line::cells));
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let padded = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

const DIR: &str = "certs";

const COLUMNS: usize = 8;
const HEADER: [&str; COLUMNS] = [
    "FILE",
    "ROLE",
    "NAME",
    "CLUSTER",
    "VALID UNTIL",
    "DAYS LEFT",
    "ISSUER",
    "FINGERPRINT",
];

/// Eight bytes: `AB:CD:...` without the last colon.
const FINGERPRINT_CHARS: usize = 8 * 3 - 1;

const EXAMPLES: &str = "\
Examples:
  quorate certs init --cluster blue          an authority in ./certs
  quorate certs issue --node node-0          certs/node-0.pem and certs/node-0.key
  quorate certs issue --node node-0 --force  the same anew, before it expires
  quorate certs issue --client app --out .   a certificate for an application
  quorate certs revoke certs/node-0.pem      take it back (ca.crl)
  quorate certs show                         all of ./certs
  quorate certs show --json node-0.pem       one, for a script";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    const NOW: Millis = Millis(1_795_213_565_000); // 2026-11-20T22:26:05Z
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        certs: CertsArgs,
    }

    /// `certs WORDS` with `DIR` standing for a directory: what it printed.
    fn certs_at(words: &str, dir: &Path, now: Millis) -> anyhow::Result<String> {
        let words = words.replace("DIR", dir.to_str().unwrap());
        let args = ["certs"].into_iter().chain(words.split_whitespace());
        let args = Program::try_parse_from(args)?.certs;
        let mut out = Vec::new();
        run(&args, now, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    fn certs(words: &str, dir: &Path) -> anyhow::Result<String> {
        certs_at(words, dir, NOW)
    }

    fn cluster_blue() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        certs("init --dir DIR --cluster blue", dir.path()).unwrap();
        dir
    }

    #[test]
    fn an_authority_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("certs");
        let text = certs("init --dir DIR --cluster blue", &inner).unwrap();
        assert!(text.contains("cluster `blue`"), "{text}");
        assert!(text.contains("2036-11-17T22:26:05Z"), "{text}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&inner), 0o700);
        assert_eq!(mode(&inner.join("ca.key")), 0o600);

        let before = fs::read(inner.join("ca.key")).unwrap();
        let error = certs("init --dir DIR --cluster blue", &inner).unwrap_err();
        assert!(error.to_string().contains("ca.pem exists"), "{error}");
        assert_eq!(fs::read(inner.join("ca.key")).unwrap(), before);
    }

    #[test]
    fn a_certificate_is_replaced_only_by_force() {
        let dir = cluster_blue();
        let path = dir.path();
        let text = certs("issue --node a --dir DIR --san ::1 cache.example", path).unwrap();
        assert!(text.contains("quorate://blue/node/a"), "{text}");
        let error = certs("issue --node a --dir DIR", path).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        let before = fs::read(path.join("a.pem")).unwrap();
        certs("issue --node a --dir DIR --force", path).unwrap();
        assert_ne!(fs::read(path.join("a.pem")).unwrap(), before);
        let mode = fs::metadata(path.join("a.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn certificates_can_be_written_elsewhere() {
        let dir = cluster_blue();
        certs("issue --client app --dir DIR --out DIR/app", dir.path()).unwrap();
        assert!(dir.path().join("app/app.pem").exists());
        assert!(!dir.path().join("app.pem").exists());
    }

    #[test]
    fn the_authority_is_safe_from_its_members() {
        let dir = cluster_blue();
        let before = fs::read(dir.path().join("ca.key")).unwrap();
        let error = certs("issue --node ca --dir DIR --force", dir.path()).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);
    }

    #[test]
    fn a_missing_authority_is_told_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = certs("issue --node a --dir DIR", dir.path()).unwrap_err();
        assert!(
            error.to_string().contains("quorate certs init --dir"),
            "{error}"
        );
        let error = certs("show --dir DIR", dir.path()).unwrap_err();
        assert!(error.to_string().contains("no certificates"), "{error}");
    }

    #[test]
    fn wrong_usage_is_told() {
        let dir = cluster_blue();
        for words in [
            "issue --dir DIR",
            "issue --node a --client b --dir DIR",
            "issue --node a/b --dir DIR",
            "issue --node a --days 0 --dir DIR",
            "init --days 36501 --dir DIR",
            "",
        ] {
            let error = certs(words, dir.path()).unwrap_err();
            assert!(error.downcast_ref::<clap::Error>().is_some(), "{words}");
        }
        assert!(certs("issue --node a --san x/y --dir DIR", dir.path()).is_err());
        assert!(certs("init --cluster a/b --dir DIR/new", dir.path()).is_err());
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_table_of_all_that_is_there() {
        let dir = cluster_blue();
        certs("issue --node node-0 --dir DIR", dir.path()).unwrap();
        certs("issue --admin ops --dir DIR --days 1", dir.path()).unwrap();
        let later = Millis(NOW.0 + 10 * DAY_MS);
        let table = certs_at("show --dir DIR", dir.path(), later).unwrap();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(lines[0], HEADER);
        assert_eq!(lines.len(), 4);
        // Sorted by file: ca, node-0, ops.
        assert_eq!(lines[1][1..4], ["ca", "-", "blue"]);
        assert_eq!(
            lines[2][1..6],
            ["node", "node-0", "blue", "2027-11-20T22:26:05Z", "355"]
        );
        assert_eq!(lines[2][6], "O=Quorate CA, CN=blue");
        assert_eq!(lines[2][7].len(), FINGERPRINT_CHARS);
        assert_eq!(lines[3][1..3], ["admin", "ops"]);
        assert_eq!(lines[3][5], "expired");
    }

    #[test]
    fn the_json_is_a_contract() {
        let dir = cluster_blue();
        certs("issue --client app --dir DIR", dir.path()).unwrap();
        let text = certs("show --json DIR/app.pem DIR/ca.pem", dir.path()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let app = &json["certificates"][0];
        assert_eq!(app["role"], "client");
        assert_eq!(app["name"], "app");
        assert_eq!(app["cluster"], "blue");
        assert_eq!(app["not_before"], "2026-11-20T22:21:05Z");
        assert_eq!(app["not_after"], "2027-11-20T22:26:05Z");
        assert_eq!(app["days_left"], 365);
        assert_eq!(app["issuer"], "O=Quorate CA, CN=blue");
        // 32 bytes in hex with colons between.
        assert_eq!(app["fingerprint"].as_str().unwrap().len(), 95);
        let ca = &json["certificates"][1];
        assert_eq!(ca["role"], "ca");
        assert_eq!(ca["name"], serde_json::Value::Null);
        assert_eq!(ca["cluster"], "blue");
        assert!(!text.contains("PRIVATE"));
    }

    #[test]
    fn a_file_that_is_no_certificate_does_not_hide_the_others() {
        let dir = cluster_blue();
        fs::write(dir.path().join("aa.pem"), "not PEM").unwrap();
        let words = format!("show --dir {}", dir.path().display());
        let args = Program::try_parse_from(["certs"].into_iter().chain(words.split(' ')));
        let mut out = Vec::new();
        let error = run(&args.unwrap().certs, NOW, &mut out).unwrap_err();
        assert!(error.to_string().contains("aa.pem"), "{error}");
        assert!(String::from_utf8(out).unwrap().contains("blue"));
    }
}
