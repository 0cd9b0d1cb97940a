// Answers every request with one line; `app check` asks it.
package main

// #include <sys/capability.h>
import "C"

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	if len(os.Args) > 1 {
		if _, err := http.Get("http://127.0.0.1:8000/"); err != nil {
			os.Exit(1)
		}
		return
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, say()) })
	fmt.Println(http.ListenAndServe(":8000", nil))
}

func say() string {
	return fmt.Sprint("well, ", C.sizeof_cap_t)
}
