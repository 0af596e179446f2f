//! Log: the lines that processes write.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use crate::start::Reads;

/// Lines that processes wrote. Clones share the lines, so several processes may write to one log.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Returns all lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Returns the number of lines that contain the text.
    pub fn count(&self, text: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Returns whether a line contains the text.
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
