use super::*;

/// A small deterministic generator: enough for property-style tests, and a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn text(&mut self) -> String {
        (0..self.below(20)).map(|_| char::from_u32(self.below(0x3000) as u32).unwrap_or('x')).collect()
    }

    fn texts(&mut self) -> Vec<String> {
        (0..self.below(5)).map(|_| self.text()).collect()
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn mode(&mut self) -> Mode {
        if self.flag() { Mode::Primary } else { Mode::Standby }
    }

    fn exit(&mut self) -> Exit {
        if self.flag() { Exit::Code(self.next() as i32) } else { Exit::Signal(self.next() as i32) }
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.flag() { Some(value(self)) } else { None }
    }

    fn incarnation(&mut self) -> Incarnation {
        Incarnation(((u128::from(self.next()) << 64) | u128::from(self.next())).to_be_bytes())
    }

    fn request(&mut self) -> Request {
        match self.below(16) {
            0 => Request::Hello,
            1 => Request::Grant {
                epoch: self.next(),
                incarnation: self.incarnation(),
                deadline_ns: self.next(),
            },
            2 => Request::SetEpoch { from: self.next(), to: self.next() },
            3 => Request::Start(Start {
                mode: self.mode(),
                epoch: self.next(),
                argv: self.texts(),
                env: self.texts(),
                cwd: self.option(Self::text),
                death_pipe: self.flag(),
                log: self.flag(),
            }),
            4 => Request::Promote { epoch: self.next(), data_dir: self.text() },
            5 => Request::Stop {
                mode: match self.below(3) {
                    0 => StopMode::Smart,
                    1 => StopMode::Fast,
                    _ => StopMode::Immediate,
                },
            },
            6 => Request::KillAll,
            7 => Request::Reload,
            8 => Request::Signal { pid: self.next() as i32, signal: self.next() as i32 },
            9 => Request::Run(Run {
                argv: self.texts(),
                env: self.texts(),
                cwd: self.option(Self::text),
                stdin: self.flag(),
                stdout: self.flag(),
                stderr: self.flag(),
                kill_on_disconnect: self.flag(),
            }),
            10 => Request::KillTool { tool: self.next(), signal: self.next() as i32 },
            11 => Request::SetNote(self.bytes(300)),
            12 => Request::SigTermAck,
            13 => Request::Lock { path: self.text() },
            14 => Request::LogTail,
            _ => Request::Exit { code: self.next() as u8 },
        }
    }

    fn postmaster_exit(&mut self) -> PostmasterExit {
        PostmasterExit { start_id: self.next(), exit: self.exit(), drained: self.flag() }
    }

    fn status(&mut self) -> Status {
        Status {
            protocol: self.next() as u16,
            version: self.text(),
            incarnation: self.incarnation(),
            boottime_ns: self.next(),
            grant: self.option(|r| GrantView { epoch: r.next(), deadline_ns: r.next() }),
            highest_epoch: self.next(),
            postmaster: self.option(|r| PostmasterView {
                pid: r.next() as i32,
                mode: r.mode(),
                epoch: r.next(),
                start_id: r.next(),
            }),
            last_exit: self.option(Self::postmaster_exit),
            fenced: self.option(Self::next),
            tools: (0..self.below(4))
                .map(|_| ToolView { tool: self.next(), pid: self.next() as i32, program: self.text() })
                .collect(),
            sigterm: self.flag(),
            lock: match self.below(3) {
                0 => LockView::None,
                1 => LockView::Held,
                _ => LockView::Missing,
            },
            pid_one: self.flag(),
            note: self.bytes(300),
        }
    }

    fn message(&mut self) -> Message {
        let id = self.next();
        let reply = match self.below(11) {
            0 => Reply::Hello(Box::new(self.status())),
            1 => Reply::Granted(GrantView { epoch: self.next(), deadline_ns: self.next() }),
            2 => Reply::Done,
            3 => Reply::Started { start_id: self.next(), pid: self.next() as i32 },
            4 => Reply::ToolStarted { tool: self.next(), pid: self.next() as i32 },
            5 => Reply::Refused(Refusal::new(RefusalCode::NoGrant, self.text())),
            9 => Reply::LogTail { bytes: self.bytes(300), ended: self.flag() },
            6 => return Message::Event(Event::PostmasterExited(self.postmaster_exit())),
            7 => return Message::Event(Event::ToolExited { tool: self.next(), exit: self.exit() }),
            8 => return Message::Event(Event::SigTerm),
            _ => return Message::Event(Event::DeadlineFired { epoch: self.next() }),
        };
        Message::Reply { id, reply }
    }
}

#[test]
fn requests_survive_the_wire() {
    let mut random = Random(0x5eed);
    for _ in 0..5_000 {
        let (id, request) = (random.next(), random.request());
        let bytes = request.encode(id).unwrap();
        let (header, decoded) = Request::decode(&bytes).unwrap();
        assert_eq!((header.id, decoded), (id, request));
        assert_eq!(decode_header(&bytes).unwrap().id, id);
    }
}

#[test]
fn messages_survive_the_wire() {
    let mut random = Random(0xfeed);
    for _ in 0..5_000 {
        let message = random.message();
        assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
    }
}

#[test]
fn every_cut_message_is_an_error() {
    let mut random = Random(0xcafe);
    for _ in 0..500 {
        let bytes = random.request().encode(7).unwrap();
        for cut in 0..bytes.len() {
            assert!(Request::decode(&bytes[..cut]).is_err(), "{bytes:?} cut at {cut}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Request::decode(&longer), Err(DecodeError::Trailing));
        let bytes = random.message().encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Message::decode(&bytes[..cut]).is_err(), "{bytes:?} cut at {cut}");
        }
    }
}

#[test]
fn garbage_is_refused_or_harmless() {
    let mut random = Random(0xdead);
    for round in 0..20_000_u32 {
        let bytes = random.bytes(200);
        let _ = Request::decode(&bytes);
        let _ = Message::decode(&bytes);
        // A valid message with flipped bytes reaches deeper than noise does.
        let mut bent = random.request().encode(u64::from(round)).unwrap();
        for _ in 0..=random.below(3) {
            let at = random.below(bent.len() as u64) as usize;
            bent[at] = random.next() as u8;
        }
        if let Ok((header, request)) = Request::decode(&bent) {
            assert_eq!(request.encode(header.id).unwrap(), bent, "one meaning, one encoding");
        }
    }
}

#[test]
fn claimed_lengths_are_not_believed() {
    let mut bytes = Request::SetNote(Vec::new()).encode(1).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Request::decode(&bytes), Err(DecodeError::Truncated));
}

#[test]
fn sizes_are_bounded() {
    assert!(Request::SetNote(vec![0; MAX_NOTE]).encode(1).is_ok());
    let over = Request::SetNote(vec![0; MAX_MESSAGE]).encode(1);
    assert!(matches!(over, Err(TooLarge(_))));
    assert_eq!(Request::decode(&vec![0; MAX_MESSAGE + 1]), Err(DecodeError::TooLarge));
    let many = Request::Run(Run {
        argv: vec![String::new(); 5_000],
        env: Vec::new(),
        cwd: None,
        stdin: false,
        stdout: false,
        stderr: false,
        kill_on_disconnect: true,
    });
    assert_eq!(Request::decode(&many.encode(1).unwrap()), Err(DecodeError::Value("list length")));
}

#[test]
fn strangers_are_told_apart() {
    let mut bytes = Request::Hello.encode(9).unwrap();
    bytes[2] = 99;
    assert_eq!(Request::decode(&bytes), Err(DecodeError::Kind(99)));
    bytes[0] = 2;
    assert_eq!(Request::decode(&bytes), Err(DecodeError::Version(2)));
    let newer = Message::Event(Event::Unknown(999));
    let mut bytes = newer.encode().unwrap();
    bytes.extend_from_slice(b"fields of a newer supervisor");
    assert_eq!(Message::decode(&bytes), Ok(newer));
    assert_eq!(RefusalCode::from_wire(77), RefusalCode::Other(77));
}

#[test]
fn every_refusal_code_has_its_own_number() {
    for wire in 1..=22 {
        let code = RefusalCode::from_wire(wire);
        assert!(!matches!(code, RefusalCode::Other(_)), "{wire}");
        assert_eq!(code.to_wire(), wire);
    }
}

#[test]
fn incarnations_are_hex() {
    let mut random = Random(3);
    let incarnation = random.incarnation();
    assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
    assert_eq!(incarnation.to_string().len(), 32);
    assert!("+1".repeat(16).parse::<Incarnation>().is_err());
    assert!("00".parse::<Incarnation>().is_err());
}
