package main

import "github.com/sealdisk/sealdisk/cmd/paper/page"

// challenges are the seven of the paper, with the tests of this repository that attack what stands against each.
var challenges = []page.Challenge{
	{
		Name: "Access control",
		Mechanism: "A peer has a role for each image: none, replica or host. A keyring is sealed to its recipients; a replica gets none. " +
			"One host at a time holds the lease to write, a signed chain that only grows",
		Tests: []page.Test{
			{Package: "transfer/peer", Name: "TestRole", Attack: "roles that contradict each other"},
			{Package: "transfer", Name: "TestReplica", Attack: "a host without keys opens what it holds"},
			{Package: "transfer", Name: "TestOneWriter", Attack: "two hosts ask for the lease in any order, answers are lost, processes end"},
		},
	},
	{
		Name: "Authentication",
		Mechanism: "Hosts pin each other's Ed25519 keys and prove them in each TLS 1.3 handshake. The holder of the lease signs each commit. " +
			"The keys that a host was given fold to the master key of the commit, or nothing is opened",
		Tests: []page.Test{
			{Package: "transfer", Name: "TestStranger", Attack: "a host that is not pinned asks, and a peer has another key"},
			{Package: "transfer", Name: "TestSwappedKeyring", Attack: "keys that are not those of the commit"},
			{Package: "crypto", Name: "TestConfirm", Attack: "master keys with one bit changed"},
			{Package: "crypto", Name: "TestVerifyRefuses", Attack: "signatures of another key, context or text"},
		},
	},
	{
		Name: "Monitoring",
		Mechanism: "The daemon counts what it refuses and to whom it sends, for Prometheus, and logs it. `verify` checks each object, with keys or without, " +
			"and names the fault. An anchor outside the store remembers the newest state",
		Tests: []page.Test{
			{Package: "cmd/sealdisk", Name: "TestSessions/replicate", Attack: "strangers and forbidden requests, looked for in the metrics"},
			{Package: "image", Name: "TestTamper", Attack: "records changed in a store: what a reader meets, `verify` finds"},
			{Package: "transfer", Name: "TestRollback", Attack: "a peer serves an older state"},
		},
	},
	{
		Name: "Confidentiality",
		Mechanism: "Each segment is sealed with AES-256-GCM or ChaCha20-Poly1305 under a key of its own, from a fresh 256-bit salt; the epochs' secrets are " +
			"sealed to recipients, hybrid post-quantum by default. Keys print as `redacted`",
		Tests: []page.Test{
			{Package: "crypto", Name: "TestNoncesNeverRepeat", Attack: "looks for a nonce twice under one key"},
			{Package: "crypto", Name: "TestOpenElsewhere", Attack: "opens with another key, salt, region or purpose"},
			{Package: "image/record", Name: "TestOtherKeyringIsRefused", Attack: "opens records with another keyring"},
			{Package: "crypto", Name: "TestRedacted", Attack: "prints secrets in each way that Go has"},
		},
	},
	{
		Name: "Secure communication",
		Mechanism: "TLS 1.3 on both sides with pinned keys, hybrid X25519MLKEM768, no tickets. Objects are sealed before they travel, named by their SHA-256 and " +
			"checked against the signed map before they are stored",
		Tests: []page.Test{
			{Package: "transfer", Name: "TestStranger", Attack: "a peer that answers with another key"},
			{Package: "transfer", Name: "TestHostile", Attack: "flipped, cut, grown, absent objects; forged heads and leases; endless answers"},
			{Package: "transfer", Name: "TestForgedMaps", Attack: "maps that are signed and lie"},
		},
	},
	{
		Name: "Integrity",
		Mechanism: "Every frame is authenticated, with its place; the map has the digest of each object; commits are signed. The salt that opens a segment comes from " +
			"the map, so that an older object does not open in a newer one's place",
		Tests: []page.Test{
			{Package: "image/record", Name: "TestEveryBitFlipIsRefused", Attack: "flips each bit of a record of each kind"},
			{Package: "image/record", Name: "TestPartsOfVersionsDoNotMix", Attack: "joins parts of two versions of a record"},
			{Package: "image", Name: "TestTamper", Attack: "flips, cuts, swaps, removes records of a store, puts older ones back"},
			{Package: "image", Name: "TestTamperJournal", Attack: "the same with a journal"},
		},
	},
	{
		Name: "Availability",
		Mechanism: "Bounded connections, bytes and memory for each peer; what has come is kept when a connection breaks; any host that has an object can serve it; " +
			"a store keeps a reserve, so that a full disk is an error and no loss; a flush survives a kill",
		Tests: []page.Test{
			{Package: "transfer", Name: "TestFlood", Attack: "a thousand connections that say nothing"},
			{Package: "transfer", Name: "TestConnections", Attack: "more connections than a peer may have"},
			{Package: "transfer", Name: "TestResume", Attack: "connections that break again and again"},
			{Package: "transfer", Name: "TestTwoPeers", Attack: "a source that lacks objects, spoils them, breaks off"},
			{Package: "blockstore", Name: "TestFullDisk", Attack: "a file system that is full"},
			{Package: "internal/crashtest", Name: "TestKill", Attack: "kills the daemon while it writes"},
		},
	},
}
