package docs

// documents lists the verbs and what they print with --json.
var documents = []struct {
	verb     string
	document any
}{}
