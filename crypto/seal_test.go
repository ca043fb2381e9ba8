package crypto

var suites = []Suite{AES256GCM, ChaCha20Poly1305}
