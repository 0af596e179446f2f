//! Traces: recorded requests of real services, read from a folder outside of the project.

use std::{collections::BTreeMap, error::Error, path::Path, process::Command};

/// Maximum number of requests that are taken of a trace.
const REQUESTS: usize = 1_000_000;

/// Form of a file.
#[derive(Clone, Copy)]
enum Form {
    /// Big-endian numbers of 32 bits, each of which is a request.
    Numbers32,
    /// Big-endian numbers of 64 bits, each of which is a request.
    Numbers64,
    /// A number on each line.
    Lines,
    /// Time, key and size on each line.
    Sizes,
}

/// A file of requests.
pub(crate) struct Source {
    /// Name in the tables.
    pub(crate) name: &'static str,
    file: &'static str,
    form: Form,
}

/// The traces, those first by which the policy was chosen.
pub(crate) const SOURCES: [Source; 10] = [
    Source { name: "web12", file: "web12.trace.xz", form: Form::Numbers32 },
    Source { name: "orm-busy", file: "orm-busy.trace.xz", form: Form::Numbers32 },
    Source { name: "orm-night", file: "orm-night.trace.xz", form: Form::Numbers32 },
    Source { name: "scarab-recs", file: "scarab-recs.trace.xz", form: Form::Numbers64 },
    Source { name: "w106", file: "w106.trace.xz", form: Form::Numbers32 },
    Source { name: "vaultservice", file: "trace_vaultservice.gz", form: Form::Numbers64 },
    Source { name: "loop", file: "loop.trace.gz", form: Form::Lines },
    Source { name: "multi3", file: "multi3.trace.gz", form: Form::Lines },
    Source { name: "web07", file: "web07.trace.xz", form: Form::Numbers32 },
    Source { name: "request", file: "request.trace.xz", form: Form::Sizes },
];

/// Number of the sources by which the policy was chosen, without the loops.
pub(crate) const CHOSEN_BY: usize = 6;

/// Requests with keys numbered from 0 in the order in which they appear first.
pub(crate) struct Trace {
    /// Keys in the order of the requests.
    pub(crate) keys: Vec<u32>,
    /// Size of the value of each key, where the trace has sizes.
    pub(crate) sizes: Option<Vec<u64>>,
    /// Number of distinct keys.
    pub(crate) distinct: usize,
}

impl Source {
    /// Returns the trace, or `None` if its file is missing. `xz` and `gzip` unpack it.
    ///
    /// # Errors
    /// An error if the file cannot be unpacked or read.
    pub(crate) fn read(&self, folder: &Path) -> Result<Option<Trace>, Box<dyn Error>> {
        let path = folder.join(self.file);
        if !path.exists() {
            return Ok(None);
        }
        let tool = if self.file.ends_with(".xz") { "xz" } else { "gzip" };
        let output = Command::new(tool).arg("-dc").arg(&path).output()?;
        if !output.status.success() {
            return Err(format!("{tool} cannot unpack {}", path.display()).into());
        }
        let requests = self.requests(&output.stdout)?;
        let mut numbers = BTreeMap::new();
        let (mut keys, mut sizes) = (Vec::new(), Vec::new());
        for (key, size) in requests.into_iter().take(REQUESTS) {
            let next = u32::try_from(numbers.len())?;
            let key = *numbers.entry(key).or_insert_with(|| {
                sizes.push(size);
                next
            });
            keys.push(key);
        }
        let sizes = matches!(self.form, Form::Sizes).then_some(sizes);
        Ok(Some(Trace { keys, sizes, distinct: numbers.len() }))
    }

    fn requests(&self, bytes: &[u8]) -> Result<Vec<(u64, u64)>, Box<dyn Error>> {
        let number = |chunk: &[u8]| chunk.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        Ok(match self.form {
            Form::Numbers32 => bytes.chunks_exact(4).map(|chunk| (number(chunk), 0)).collect(),
            Form::Numbers64 => bytes.chunks_exact(8).map(|chunk| (number(chunk), 0)).collect(),
            Form::Lines => {
                let lines = std::str::from_utf8(bytes)?.lines().filter_map(|line| line.trim().parse().ok());
                lines.map(|key| (key, 0)).collect()
            }
            Form::Sizes => {
                let of_line = |line: &str| {
                    let mut words = line.split_whitespace().skip(1).map(|word| word.parse().ok());
                    Some((words.next()??, words.next()??))
                };
                std::str::from_utf8(bytes)?.lines().filter_map(of_line).collect()
            }
        })
    }
}
