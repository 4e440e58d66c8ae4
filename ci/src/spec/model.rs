//! The ABI as data: constants and `repr(C)` structures, read from its Rust source.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use syn::{Attribute, Expr, Item, Lit, Meta, Type, UnOp};

/// Everything that the ABI's source defines.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) constants: Vec<Constant>,
    pub(crate) structs: Vec<Struct>,
}

/// A `pub const`.
#[derive(Debug)]
pub(crate) struct Constant {
    /// The file it is in, without `.rs`.
    pub(crate) module: String,
    pub(crate) name: String,
    /// Its Rust type.
    pub(crate) kind: String,
    pub(crate) value: i128,
    /// Whether the source writes it in hexadecimal.
    pub(crate) hexadecimal: bool,
    pub(crate) doc: String,
}

/// A `repr(C)` structure.
#[derive(Debug)]
pub(crate) struct Struct {
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) doc: String,
    pub(crate) fields: Vec<Field>,
    pub(crate) size: usize,
    pub(crate) align: usize,
}

/// A field.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// Its type, or that of its elements.
    pub(crate) kind: String,
    /// How many elements, where it is an array.
    pub(crate) count: Option<Count>,
    pub(crate) offset: usize,
    pub(crate) doc: String,
}

/// An array's length.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    pub(crate) value: usize,
    /// The constant that gives it.
    pub(crate) name: Option<String>,
}

impl Model {
    /// Reads all files of the folder; structures come after those that they contain.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {folder:?}"))? {
            let path = entry?.path();
            let module = path.file_stem().context("a file without a name")?;
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
            let file = syn::parse_file(&text).with_context(|| format!("cannot parse {path:?}"))?;
            files.insert(module.to_string_lossy().into_owned(), file);
        }
        let mut model = Self {
            constants: Vec::new(),
            structs: Vec::new(),
        };
        let mut items: Vec<syn::ItemStruct> = Vec::new();
        let mut modules = Vec::new();
        for (module, file) in files {
            for item in file.items {
                match item {
                    Item::Const(item) if item.ident != "_" => {
                        if let Some(constant) = Constant::new(&module, &item)? {
                            model.constants.push(constant);
                        }
                    }
                    Item::Struct(item) if is_repr_c(&item.attrs) => {
                        items.push(item);
                        modules.push(module.clone());
                    }
                    _ => {}
                }
            }
        }
        let mut left: Vec<_> = items.into_iter().zip(modules).collect();
        while !left.is_empty() {
            let before = left.len();
            let mut later = Vec::new();
            for (item, module) in left {
                match model.layout(&module, &item)? {
                    Some(done) => model.structs.push(done),
                    None => later.push((item, module)),
                }
            }
            if later.len() == before {
                let names: Vec<_> = later
                    .iter()
                    .map(|(item, _)| item.ident.to_string())
                    .collect();
                bail!("these structures have fields of a type that is not in the ABI: {names:?}");
            }
            left = later;
        }
        Ok(model)
    }

    /// The structure with its offsets, or `None` where it has one in it that is not known yet.
    fn layout(&self, module: &str, item: &syn::ItemStruct) -> Result<Option<Struct>> {
        let mut fields = Vec::new();
        let (mut size, mut align) = (0_usize, 1);
        for field in &item.fields {
            let name = field.ident.as_ref().context("a field without a name")?;
            let (kind, count) = match &field.ty {
                Type::Array(array) => (type_name(&array.elem)?, Some(self.count(&array.len)?)),
                other => (type_name(other)?, None),
            };
            let Some((one, its_align)) = self.size_of(&kind) else {
                return Ok(None);
            };
            let offset = size.next_multiple_of(its_align);
            if offset != size {
                bail!("{}.{name} has implicit padding before it", item.ident);
            }
            let bytes = one * count.as_ref().map_or(1, |count| count.value);
            fields.push(Field {
                name: name.to_string(),
                kind,
                count,
                offset,
                doc: doc(&field.attrs),
            });
            size = offset + bytes;
            align = align.max(its_align);
        }
        if !size.is_multiple_of(align) {
            bail!("{} has implicit padding at its end", item.ident);
        }
        Ok(Some(Struct {
            module: module.to_owned(),
            name: item.ident.to_string(),
            doc: doc(&item.attrs),
            fields,
            size,
            align,
        }))
    }

    fn size_of(&self, kind: &str) -> Option<(usize, usize)> {
        Some(match kind {
            "u8" => (1, 1),
            "u16" => (2, 2),
            "u32" | "i32" => (4, 4),
            "u64" | "i64" => (8, 8),
            other => {
                let known = self.structs.iter().find(|known| known.name == other)?;
                (known.size, known.align)
            }
        })
    }

    fn count(&self, expression: &Expr) -> Result<Count> {
        let name = match expression {
            Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
            _ => None,
        };
        let value = match &name {
            Some(name) => self.constant(name)?.value,
            None => {
                literal(expression)
                    .context("an array's length is neither number nor name")?
                    .0
            }
        };
        Ok(Count {
            value: usize::try_from(value)?,
            name,
        })
    }

    /// The constant of that name.
    pub(crate) fn constant(&self, name: &str) -> Result<&Constant> {
        let found = self.constants.iter().find(|constant| constant.name == name);
        found.with_context(|| format!("the ABI has no constant {name}"))
    }

    /// `major.minor`.
    pub(crate) fn version(&self) -> Result<String> {
        let version = self.constant("ABI_VERSION")?.value;
        Ok(format!("{}.{}", version >> 16, version & 0xffff))
    }

    /// The text of `abi.lock`: every number that two sides have to agree on.
    pub(crate) fn lock(&self) -> String {
        let mut text = "# Every number of the ABI. Made by `cargo ci spec --write`.\n".to_owned();
        for Constant {
            name, kind, value, ..
        } in &self.constants
        {
            text += &format!("const {name}: {kind} = {value}\n");
        }
        for of in &self.structs {
            text += &format!("struct {}: size {} align {}\n", of.name, of.size, of.align);
            for field in &of.fields {
                let Field { name, offset, .. } = field;
                text += &format!("  {offset}: {name}: {}\n", field.rust_type());
            }
        }
        text
    }
}

impl Constant {
    /// `None` where the value is not a plain number: tables of the crate's own use.
    fn new(module: &str, item: &syn::ItemConst) -> Result<Option<Self>> {
        let (Ok(kind), Some((value, hexadecimal))) = (type_name(&item.ty), literal(&item.expr))
        else {
            return Ok(None);
        };
        let doc = doc(&item.attrs);
        if doc.is_empty() {
            bail!(
                "{} has no doc comment, so its row in SPEC.md would be empty",
                item.ident
            );
        }
        Ok(Some(Self {
            module: module.to_owned(),
            name: item.ident.to_string(),
            kind,
            value,
            hexadecimal,
            doc,
        }))
    }

    /// The value as the source writes it.
    pub(crate) fn text(&self) -> String {
        if self.hexadecimal {
            format!("{:#x}", self.value)
        } else {
            self.value.to_string()
        }
    }
}

impl Field {
    /// The type as Rust writes it, lengths as numbers.
    pub(crate) fn rust_type(&self) -> String {
        match &self.count {
            Some(count) => format!("[{}; {}]", self.kind, count.value),
            None => self.kind.clone(),
        }
    }
}

fn is_repr_c(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("repr")
            && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "C")
    })
}

fn type_name(of: &Type) -> Result<String> {
    match of {
        Type::Path(path) => Ok(path.path.require_ident()?.to_string()),
        _ => bail!("a type that C has no word for"),
    }
}

/// The number, and whether it is written in hexadecimal.
fn literal(expression: &Expr) -> Option<(i128, bool)> {
    match expression {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) => Some((
                number.base10_parse().ok()?,
                number.to_string().starts_with("0x"),
            )),
            _ => None,
        },
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => {
            literal(&unary.expr).map(|(number, hexadecimal)| (-number, hexadecimal))
        }
        _ => None,
    }
}

/// The doc comment as one paragraph a paragraph, intra-doc brackets taken off.
fn doc(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(line) = &literal.lit
        {
            text += line.value().trim();
            text.push(' ');
        }
    }
    text.trim().replace("[`", "`").replace("`]", "`")
}
