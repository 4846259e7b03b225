//! Percent-decoding: strict, for connection URIs and for requests.

/// Decodes the percent escapes of a text. None where an escape is malformed.
///
/// Most decoders let a malformed escape pass. Here it is an error: it would silently change a
/// password or a filter.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            digit(bytes.next()?)? * 16 + digit(bytes.next()?)?
        } else {
            byte
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn escapes_are_decoded_and_malformed_ones_rejected() {
        for (text, decoded) in [("a%2Fb", &b"a/b"[..]), ("%C3%bc+", b"\xc3\xbc+"), ("", b"")] {
            assert_eq!(decode(text).as_deref(), Some(decoded), "{text}");
        }
        for text in ["%", "%1", "%zz", "%+1", "a%C"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
