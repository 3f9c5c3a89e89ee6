package registry

import (
	"sync/atomic"
	"time"
)

// Options are how a registry is spoken to. The zero value is what a public
// registry wants.
type Options struct {
	PlainHTTP bool   // HTTP without encryption
	Insecure  bool   // HTTPS without checking the server's certificate
	CAFile    string // certificates to trust besides the system's
	CertFile  string // client certificate, with KeyFile
	KeyFile   string
	certsDirs []string // of docker's and podman's certificates; nil: the usual ones

	Username string // with Password, instead of what the files have
	Password string
	AuthFile string    // docker's config.json or podman's auth.json; "": the usual places
	authPipe *authPipe // what AuthFile gave, if it is no file; nil: it is one

	// RegistriesConf is a containers-registries.conf(5) of version 2, and
	// HostsDir a directory as containerd's certs.d. They say where else an
	// image's registry is mirrored, and win in this order. "": where they
	// usually are, or what $CONTAINERS_REGISTRIES_CONF and $LAYERPIPE_HOSTS_DIR
	// name.
	RegistriesConf string
	HostsDir       string

	// TokenServers are hosts, with or without a port, that may be token servers
	// although they have internal addresses and the registry has none.
	TokenServers []string

	UserAgent string

	// IdleTimeout is how long a request may give nothing: no answer, or no
	// further byte of it. There is no limit on the whole. 0: one minute.
	IdleTimeout time.Duration
	// Retries is how many failures in a row, without progress between them, end
	// a request; 0: 6.
	Retries int
	// RetryWait is the first wait after a failure; it doubles with each. 0: half
	// a second.
	RetryWait time.Duration
	// LongestAsked caps what a registry may make us wait with Retry-After. 0: five
	// minutes.
	LongestAsked time.Duration
	// Expected, if not nil and true, tells that the registry is known to be there:
	// a host that refuses connections, or has no address just now, is restarting.
	// One that never answered is taken to be mistyped otherwise.
	Expected *atomic.Bool
	// CredentialLife is how long a credential that was looked up is taken for
	// what another look-up would give: helpers hand out ones that expire, and a
	// client may live longer. 0: one minute.
	CredentialLife time.Duration
	// Concurrency bounds the requests of random reads under way at once; 0: 8.
	Concurrency int

	// Requests, if not nil, counts the HTTP requests: all of them, also for
	// tokens and those that fail.
	Requests *atomic.Int64
	// Notify, if not nil, gets a line on what a user may want to know while a
	// request takes its time: retries, mostly. It may be called by many
	// goroutines at once.
	Notify func(line string)
	// Verbose gets what only a curious user wants to know: which mirror is used.
	// It is called as Notify is.
	Verbose func(line string)
}

// setDefaults replaces zeros by what they stand for.
func (o *Options) setDefaults() {
	if o.UserAgent == "" {
		o.UserAgent = "layerpipe"
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = time.Minute
	}
	if o.Retries <= 0 {
		o.Retries = maxFailures
	}
	if o.RetryWait <= 0 {
		o.RetryWait = firstWait
	}
	if o.LongestAsked <= 0 {
		o.LongestAsked = longestAsked
	}
	if o.CredentialLife <= 0 {
		o.CredentialLife = time.Minute
	}
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
}
