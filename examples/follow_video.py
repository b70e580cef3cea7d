"""People of a video, each with a number that stays. Run it in a folder that has a clip.mp4."""

from vqhps import Predictor

for frame in Predictor().track("clip.mp4"):
    for number, body in frame.people.items():
        print(f"{frame.time:.2f} s: person {number} is {body.translation[2]:.1f} m away")
