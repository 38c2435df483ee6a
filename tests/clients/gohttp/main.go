// An HTTP server and its load as most services are: Go's net/http on both sides. The figures that stead's goal for HTTP
// stands on were measured so; a leaner pair shows the path alone.
//
//	gohttp serve :9005
//	gohttp load ADDRESS SECONDS CONNECTIONS     one JSON line in the form of `testapp measure`
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

func main() {
	if os.Args[1] == "serve" {
		http.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") })
		fail(http.ListenAndServe(os.Args[2], nil))
	}
	seconds, err := strconv.ParseFloat(os.Args[3], 64)
	fail(err)
	connections, err := strconv.Atoi(os.Args[4])
	fail(err)
	load("http://"+os.Args[2]+"/hello", seconds, connections)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func load(url string, seconds float64, connections int) {
	var all sync.WaitGroup
	var lock sync.Mutex
	var times []float64
	started := time.Now()
	end := started.Add(time.Duration(seconds * float64(time.Second)))
	for range connections {
		all.Go(func() {
			own := one(url, end)
			lock.Lock()
			defer lock.Unlock()
			times = append(times, own...)
		})
	}
	all.Wait()
	took := time.Since(started).Seconds()
	slices.Sort(times)
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"mode": "H", "parallel": connections, "seconds": took, "bytes": 0, "gbit_per_s": 0.0, "n": len(times),
		"rate": float64(len(times)) / took, "p50_us": times[len(times)/2], "p99_us": times[len(times)*99/100],
		"beside_gbit_per_s": 0.0,
	})
}

// Requests one after another on one connection; microseconds of each.
func one(url string, end time.Time) []float64 {
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	var times []float64
	for time.Now().Before(end) {
		asked := time.Now()
		resp, err := client.Get(url)
		fail(err)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		times = append(times, float64(time.Since(asked).Nanoseconds())/1000)
	}
	return times
}
