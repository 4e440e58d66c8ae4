//! The published form: `SPEC.md` as one HTML file that needs nothing else, and as PDF.
//!
//! Sections get numbers, clauses and names get anchors, and every mention of one is a link. The
//! PDF is the same page, printed by Chromium.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};
use regex::{Captures, Regex};

use crate::run;

/// The page's looks.
const STYLE: &str = include_str!("publish/style.css");
/// On a narrow screen the contents are folded up at first; never on paper.
const FOLD: &str = "const contents = document.querySelector('nav details');\n\
                    if (innerWidth < 1200 && !matchMedia('print').matches) contents.open = false;\n\
                    addEventListener('beforeprint', () => contents.open = true);";
/// What Debian and others call it.
const BROWSERS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chromium-headless-shell",
];

/// Writes the HTML file.
pub(crate) fn write_html(spec: &str, file: &Path) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {folder:?}"))?;
    }
    fs::write(file, page(spec)?).with_context(|| format!("cannot write {file:?}"))?;
    println!("spec: wrote {}", file.display());
    Ok(())
}

/// Writes the PDF file.
pub(crate) fn write_pdf(spec: &str, file: &Path) -> Result<()> {
    let Some(browser) = BROWSERS.iter().find(|name| {
        let version = run::read(Command::new(name).arg("--version"));
        version.is_ok()
    }) else {
        bail!(
            "a PDF needs Chromium, which is not here; install it with `apt-get install chromium`, \
             or print what `cargo ci spec --html` writes"
        );
    };
    let source = file.with_extension("print.html");
    write_html(spec, &source)?;
    let source = fs::canonicalize(&source)?;
    run::read(
        Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .arg("--no-pdf-header-footer")
            .arg(format!("--print-to-pdf={}", file.display()))
            .arg(format!("file://{}", source.display())),
    )?;
    fs::remove_file(source)?;
    let pdf = fs::read(file).with_context(|| format!("{browser} has not written {file:?}"))?;
    if !pdf.starts_with(b"%PDF-") {
        bail!("what {browser} has written to {} is no PDF", file.display());
    }
    println!("spec: wrote {}", file.display());
    Ok(())
}

/// A chapter or a part of one.
#[derive(Debug)]
struct Section {
    /// `4.2`; empty for the title.
    number: String,
    title: String,
    anchor: String,
    is_chapter: bool,
}

/// The document on its way from Markdown to HTML.
struct Page<'a> {
    sections: Vec<Section>,
    /// Clause ids and the section each is in.
    clauses: Vec<(String, usize)>,
    /// Names that a table defines, and the section.
    names: BTreeMap<String, usize>,
    events: Vec<Event<'a>>,
    citation: Regex,
    word: Regex,
}

/// The whole page.
fn page(spec: &str) -> Result<String> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_SMART_PUNCTUATION;
    let events: Vec<Event<'_>> = Parser::new_ext(spec, options).collect();
    let mut page = Page {
        sections: Vec::new(),
        clauses: Vec::new(),
        names: BTreeMap::new(),
        events: Vec::new(),
        citation: Regex::new(r"\bPV-[A-Z]+-[0-9]+\b")?,
        word: Regex::new(r"\b(MUST NOT|MUST|SHOULD NOT|SHOULD|MAY)\b")?,
    };
    page.find(&events);
    page.translate(events);
    let mut body = String::new();
    html::push_html(&mut body, page.events.iter().cloned());
    // The contents come after the title and its table.
    let (head, rest) = body.split_once("<h2 ").unwrap_or((&body, ""));
    let title = page
        .sections
        .first()
        .map_or("", |section| section.title.as_str());
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{head}<nav><details open><summary>Contents</summary>\n{}</details></nav>\n\
         <script>{FOLD}</script>\n<h2 {rest}{}</main>\n</body>\n</html>\n",
        page.contents(),
        page.index(),
    ))
}

impl Page<'_> {
    /// First pass: sections, clauses and defined names, so that links can go forward.
    fn find(&mut self, events: &[Event<'_>]) {
        let (mut chapter, mut part) = (0, 0);
        let mut heading: Option<(HeadingLevel, String)> = None;
        let mut row_start = false;
        let mut strong = false;
        let mut generated = false;
        for event in events {
            match event {
                Event::Html(text) | Event::InlineHtml(text) => {
                    generated = is_opening(text, generated)
                }
                Event::Start(Tag::Heading { level, .. }) => heading = Some((*level, String::new())),
                Event::End(TagEnd::Heading(_)) => {
                    let Some((level, title)) = heading.take() else {
                        continue;
                    };
                    let number = match level {
                        HeadingLevel::H1 => String::new(),
                        HeadingLevel::H2 => {
                            (chapter, part) = (chapter + 1, 0);
                            chapter.to_string()
                        }
                        _ => {
                            part += 1;
                            format!("{chapter}.{part}")
                        }
                    };
                    self.sections.push(Section {
                        anchor: format!("s{number}-{}", anchor(&title)),
                        number,
                        title,
                        is_chapter: level == HeadingLevel::H2,
                    });
                }
                Event::Text(text) | Event::Code(text) if heading.is_some() => {
                    if let Some((_, title)) = &mut heading {
                        title.push_str(text);
                    }
                }
                Event::Start(Tag::TableRow) => row_start = generated,
                Event::Code(name) if row_start => {
                    row_start = false;
                    if is_name(name) {
                        let section = self.sections.len().saturating_sub(1);
                        self.names.entry(name.to_string()).or_insert(section);
                    }
                }
                Event::End(TagEnd::TableCell) => row_start = false,
                Event::Start(Tag::Strong) => strong = true,
                Event::End(TagEnd::Strong) => strong = false,
                Event::Text(text) if strong && self.citation.is_match(text) => {
                    let section = self.sections.len().saturating_sub(1);
                    self.clauses.push((text.to_string(), section));
                }
                _ => {}
            }
        }
    }

    /// Second pass: the events with anchors, numbers and links.
    fn translate<'a>(&mut self, events: Vec<Event<'a>>)
    where
        Self: Sized,
    {
        let mut section = 0;
        let mut at = 0;
        let (mut in_heading, mut in_code, mut row_start) = (false, false, false);
        let mut generated = false;
        while at < events.len() {
            let event = &events[at];
            at += 1;
            match event {
                Event::Html(text) | Event::InlineHtml(text) if text.starts_with("<!--") => {
                    generated = is_opening(text, generated);
                }
                Event::Start(Tag::Heading { level, .. }) => {
                    in_heading = true;
                    let Section { anchor, number, .. } = &self.sections[section];
                    let opening = format!("<{level} id=\"{anchor}\"><span>{number}</span> ");
                    self.push(opening);
                    section += 1;
                }
                Event::End(TagEnd::Heading(level)) => {
                    in_heading = false;
                    let anchor = &self.sections[section - 1].anchor;
                    let closing =
                        format!(" <a class=\"here\" href=\"#{anchor}\">#</a></{level}>\n");
                    self.push(closing);
                }
                Event::Start(Tag::Paragraph) if self.clause_at(&events[at..]).is_some() => {
                    let id = self.clause_at(&events[at..]).unwrap_or_default();
                    self.push(format!(
                        "<p class=\"clause\" id=\"{id}\"><a class=\"id\" href=\"#{id}\">{id}</a> "
                    ));
                    // Past the strong text.
                    while !matches!(events[at], Event::End(TagEnd::Strong)) {
                        at += 1;
                    }
                    at += 1;
                }
                Event::Start(Tag::Table(_)) => {
                    self.push("<div class=\"table\">".to_owned());
                    self.keep(event);
                }
                Event::End(TagEnd::Table) => {
                    self.keep(event);
                    self.push("</div>\n".to_owned());
                }
                Event::Start(Tag::CodeBlock(_)) => {
                    in_code = true;
                    self.keep(event);
                }
                Event::End(TagEnd::CodeBlock) => {
                    in_code = false;
                    self.keep(event);
                }
                Event::Start(Tag::TableRow) => {
                    row_start = generated;
                    self.keep(event);
                }
                Event::End(TagEnd::TableCell) => {
                    row_start = false;
                    self.keep(event);
                }
                Event::Code(name) if self.names.contains_key(name.as_ref()) && !in_heading => {
                    let (name, defines) = (name.to_string(), row_start);
                    row_start = false;
                    self.push(if defines {
                        format!("<code id=\"{name}\">{name}</code>")
                    } else {
                        format!("<a class=\"name\" href=\"#{name}\"><code>{name}</code></a>")
                    });
                }
                Event::Text(text) if !in_heading && !in_code => {
                    let linked = self.linked(text);
                    self.push(linked);
                }
                other => self.keep(other),
            }
        }
    }

    /// The id, where a paragraph with these contents is a clause.
    fn clause_at(&self, events: &[Event<'_>]) -> Option<String> {
        if !matches!(events.first(), Some(Event::Start(Tag::Strong))) {
            return None;
        }
        let texts = events.iter().skip(1).map_while(|event| match event {
            Event::Text(text) => Some(text.as_ref()),
            _ => None,
        });
        let text: String = texts.collect();
        let id = text.strip_prefix('[')?.strip_suffix(']')?;
        self.citation.is_match(id).then(|| id.to_owned())
    }

    /// Text with its citations as links, and the normative words set off.
    fn linked(&self, text: &str) -> String {
        let mut escaped = String::new();
        html::push_html(
            &mut escaped,
            [Event::Text(CowStr::Borrowed(text))].into_iter(),
        );
        let linked = self.citation.replace_all(&escaped, |found: &Captures<'_>| {
            let id = &found[0];
            if self.clauses.iter().any(|(known, _)| known == id) {
                format!("<a href=\"#{id}\">{id}</a>")
            } else {
                id.to_owned()
            }
        });
        let words = self.word.replace_all(&linked, "<b>$1</b>");
        words.into_owned()
    }

    fn push(&mut self, text: String) {
        self.events.push(Event::InlineHtml(text.into()));
    }

    fn keep(&mut self, event: &Event<'_>) {
        self.events.push(event.clone().into_static());
    }

    /// The table of contents.
    fn contents(&self) -> String {
        let mut text = "<ol>\n".to_owned();
        for section in self.sections.iter().filter(|s| !s.number.is_empty()) {
            let class = if section.is_chapter {
                "chapter"
            } else {
                "part"
            };
            text += &format!(
                "<li class=\"{class}\"><a href=\"#{}\"><span>{}</span> {}</a></li>\n",
                section.anchor,
                section.number,
                escape(&section.title)
            );
        }
        text + "<li class=\"chapter\"><a href=\"#index\"><span></span> Index</a></li>\n</ol>\n"
    }

    /// The index of clause ids and of names.
    fn index(&self) -> String {
        let entry = |name: &str, section: usize| {
            let number = &self.sections[section].number;
            format!("<li><a href=\"#{name}\">{name}</a> <span>{number}</span></li>\n")
        };
        let mut ids = self.clauses.clone();
        ids.sort_by_key(|(id, _)| {
            let (family, number) = id.rsplit_once('-').unwrap_or((id, ""));
            (family.to_owned(), number.parse::<u32>().unwrap_or(0))
        });
        let ids: String = ids.iter().map(|(id, at)| entry(id, *at)).collect();
        let names: String = self
            .names
            .iter()
            .map(|(name, at)| entry(name, *at))
            .collect();
        format!(
            "<h2 id=\"index\">Index</h2>\n<h3>Clauses</h3>\n<ul class=\"index\">\n\
             {ids}</ul>\n<h3>Names</h3>\n<ul class=\"index\">\n{names}</ul>\n"
        )
    }
}

/// Whether what follows this mark is generated; `before` where it is another piece of HTML.
fn is_opening(mark: &str, before: bool) -> bool {
    match mark.trim_start() {
        mark if mark.starts_with("<!-- gen:") => true,
        mark if mark.starts_with("<!-- /gen") => false,
        _ => before,
    }
}

/// Whether a table's first cell defines this: a constant, not a field.
fn is_name(text: &str) -> bool {
    text.len() > 3
        && text.contains('_')
        && text
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

fn anchor(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_lowercase()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "# The ABI\n\n## First part\n\nSee PV-X-2 &lt; this.\n\n### Details\n\n\
        **[PV-X-1]** The host MUST use `SOME_NAME` & more.\n\n**[PV-X-2]** The host MAY.\n\n\
        ## Registry\n\n<!-- gen:x -->\n| name | value |\n|---|---|\n| `SOME_NAME` | `1` |\n<!-- /gen -->\n";

    #[test]
    fn sections_are_numbered_and_listed() {
        let page = page(SPEC).unwrap();
        assert!(page.contains("<title>The ABI</title>"));
        for (number, anchor) in [("1", "first-part"), ("1.1", "details"), ("2", "registry")] {
            assert!(page.contains(&format!("id=\"s{number}-{anchor}\"><span>{number}</span>")));
            assert!(page.contains(&format!(
                "href=\"#s{number}-{anchor}\"><span>{number}</span>"
            )));
        }
    }

    #[test]
    fn clauses_and_names_are_linked_and_in_the_index() {
        let page = page(SPEC).unwrap();
        assert!(page.contains("<p class=\"clause\" id=\"PV-X-1\">"));
        assert!(page.contains("See <a href=\"#PV-X-2\">PV-X-2</a> &lt; this."));
        assert!(page.contains("<b>MUST</b>") && page.contains("&amp; more"));
        assert!(page.contains("<code id=\"SOME_NAME\">SOME_NAME</code>"));
        assert!(page.contains("<a class=\"name\" href=\"#SOME_NAME\">"));
        let index = page.split("id=\"index\"").nth(1).unwrap();
        assert!(index.contains("#PV-X-1") && index.contains("#SOME_NAME"));
    }

    #[test]
    fn every_link_inside_the_page_has_its_target() {
        let spec = include_str!("../../../hypercall-abi/SPEC.md");
        let page = page(spec).unwrap();
        let link = Regex::new("href=\"#([^\"]*)\"").unwrap();
        let mut links = 0;
        for found in link.captures_iter(&page) {
            links += 1;
            let target = format!("id=\"{}\"", &found[1]);
            assert_eq!(page.matches(&target).count(), 1, "{target}");
        }
        assert!(links > 100);
        assert!(!page.contains("<!--"), "marks of the generator");
        assert!(!page.contains("src="), "something from elsewhere");
    }
}
