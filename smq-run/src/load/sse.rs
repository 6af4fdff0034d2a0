//! Server-sent events, as far as OpenAI's API has them: `data:` lines, each event ended by an empty
//! line.

/// Splits a body that comes in pieces into the data of its events.
#[derive(Default)]
pub(super) struct Events {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Data lines of an event that has not ended.
    data: Option<Vec<u8>>,
}

impl Events {
    /// The data of the events that `piece` ends.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        let mut ended = Vec::new();
        for byte in piece {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                ended.extend(self.data.take());
            } else if let Some(data) = line.strip_prefix(b"data:") {
                let data = data.strip_prefix(b" ").unwrap_or(data);
                match &mut self.data {
                    Some(whole) => {
                        whole.push(b'\n');
                        whole.extend_from_slice(data);
                    }
                    None => self.data = Some(data.to_vec()),
                }
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::Events;

    #[test]
    fn events_are_the_same_however_the_body_is_cut() {
        let body =
            b"data: {\"a\":1}\r\n\r\n: a comment\nevent: x\ndata:two\ndata: lines\n\ndata: [D";
        let expected = [&b"{\"a\":1}"[..], b"two\nlines"];
        for cut in 0..body.len() {
            let mut events = Events::default();
            let mut found = events.push(&body[..cut]);
            found.extend(events.push(&body[cut..]));
            assert_eq!(found, expected, "cut at {cut}");
            assert_eq!(events.push(b"ONE]\n\n"), [b"[DONE]"]);
        }
    }
}
