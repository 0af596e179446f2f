//! What processes write.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use crate::start::Reads;

/// Lines that processes wrote; a clone is the same log, so that several processes may share one.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// All of them so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// How many contain this text.
    pub fn count(&self, text: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Whether one does.
    pub fn said(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    pub(crate) fn follow(&self, from: impl Read + Send + 'static, reads: &Arc<Reads>) -> JoinHandle<()> {
        let (log, reads) = (self.0.clone(), Arc::clone(reads));
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if reads(&line) {
                    log.lock().unwrap().push(line);
                }
            }
        })
    }
}
