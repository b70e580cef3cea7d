"""Who is where in a video, in five lines: `python examples/follow_video.py clip.mp4`."""

import sys

from vqhps import Predictor


def main(video: str) -> None:
    """Print where each person is, in metres from the camera, once a second."""
    second = -1
    for frame in Predictor().track(video):
        if int(frame.time) > second:
            second = int(frame.time)
            where = [f"person {number} {body.translation[2]:.1f} m away" for number, body in frame.people.items()]
            print(f"{frame.time:.1f} s: {', '.join(where) or 'nobody'}")


if __name__ == "__main__":
    main(sys.argv[1])
